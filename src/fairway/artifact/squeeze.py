"""Compression of program text by mixed contexts: at this size an eighth shorter than LZMA or bzip2, and slow.

Each bit is predicted by what followed in seven contexts before: the last 1, 2, 3 and 5 bytes, the word so far, and the last
4 and 8 tokens with all words made alike. Their predictions are mixed in the logistic domain by weights that learn. All
arithmetic is on integers, and the two tables are rounded to integers, so that every machine decodes alike.
"""

import math


def predictions():
    """A generator of the chance, in 65536ths, that the next bit is 1; it is sent that bit. Bytes come highest bit first."""
    stretch = [round(256 * math.log((i + 0.5) / (4095.5 - i))) for i in range(4096)]
    squash = [round(65536 / (1 + math.exp((2047 - i) / 256))) for i in range(4095)]
    seen, sets, text, shape, word = {}, {}, "", "", ""
    while 1:
        keys = word + " ", shape[-4:] + "  ", shape[-8:] + "   ", *(text[-i:] for i in (1, 2, 3, 5))
        tables = [seen.setdefault((i, key), {}) for i, key in enumerate(keys)]
        bits, met = 1, sum(map(bool, tables))
        while bits < 256:
            slots = [table.get(bits) or table.setdefault(bits, [32768, 5]) for table in tables]
            inputs = [stretch[slot[0] >> 4] for slot in slots]
            known = bits, met
            weights = sets.get(known) or [16384] * 7
            chance = squash[max(0, min(4094, 2047 + (sum(map(int.__mul__, weights, inputs)) >> 16)))]
            bit = yield chance
            error = (bit << 16) - chance
            sets[known] = [w + (x * error >> 15) for w, x in zip(weights, inputs, strict=True)]
            goal = bit * 65535
            for slot in slots:
                p, n = slot
                slot[:] = p + (goal - p) * 4 // n, n + 4 * (n < 250)
            bits += bits + bit
        last = chr(bits - 256)
        text = text[-4:] + last
        if ("a" + last).isidentifier():
            word += last
            shape = shape.rstrip("a") + "a"
        else:
            word, shape = "", shape + last


def squeezed(data):
    """bytes -> fewer bytes: an arithmetic code of the bits by `predictions`."""
    model = predictions()
    chance, low, high, out = next(model), 0, 2**32 - 1, bytearray()
    for byte in data:
        for place in range(7, -1, -1):
            bit = byte >> place & 1
            middle = low + (high - low >> 16) * chance
            low, high = (low, middle) if bit else (middle + 1, high)
            while not (low ^ high) >> 24:
                out.append(low >> 24)
                low, high = low << 8 & 2**32 - 1, high << 8 & 2**32 - 1 | 255
            chance = model.send(bit)
    # Any number from low to high tells the rest; zeros follow when it is read.
    return bytes(out) + ((low >> 24) + 1 if low else 0).to_bytes(1)


def unsqueezed(data, size):
    """The `size` bytes that `squeezed` was given. Its source, and that of `predictions`, goes into the program."""
    model = predictions()
    chance, low, high, code, rest, out = next(model), 0, 0, 0, iter(data + bytes(size + 4)), bytearray()
    while len(out) < size:
        bits = 1
        while bits < 256:
            # To begin with low and high are the same, so that the first four bytes come in.
            while not (low ^ high) >> 24:
                low, high, code = low << 8 & 2**32 - 1, high << 8 & 2**32 - 1 | 255, code << 8 & 2**32 - 1 | next(rest)
            middle = low + (high - low >> 16) * chance
            bit = int(code <= middle)
            low, high = (low, middle) if bit else (middle + 1, high)
            bits += bits + bit
            chance = model.send(bit)
        out.append(bits - 256)
    return out
