"""Schemes that turn tensors into integer codes and back, and the policy by role."""
