"""Code comes out of its wrappers without being run, and what cannot come out is said."""

import base64
import bz2
import gzip
import io
import lzma
import marshal
import zipfile
import zlib

import pytest

from fairway.artifact.wrap import escaped, wrap
from fairway.referee.unwrap import unwrap

PLAIN = 'import os\nprint("hello")\n\n\ndef f(x):\n    return x + 1\n'
DATA = PLAIN.encode()
XZ, Z = lzma.compress(DATA), zlib.compress(DATA)
B85 = base64.b85encode(XZ).decode()
RAW = base64.b85encode(lzma.compress(DATA, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}])).decode()


def application():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("__main__.py", PLAIN)
    return b"#!/usr/bin/env python3\n" + out.getvalue()


WRAPPED = {
    "base85 of LZMA": f"import lzma,base64\nexec(lzma.decompress(base64.b85decode({B85!r})))",
    "names of its own, compile": (
        f'import zlib as z,base64 as b\nd="{base64.b64encode(Z).decode()}"\n'
        's=z.decompress(b.b64decode(d)).decode()\nexec(compile(s,"<x>","exec"),globals())'
    ),
    "bytes literal of bzip2": f"from bz2 import decompress as d\nexec(d({bz2.compress(DATA)!r}))",
    "__import__ and hex": f'exec(__import__("gzip").decompress(bytes.fromhex("{gzip.compress(DATA).hex()}")))',
    "raw LZMA": (
        f'import lzma as L,base64 as B\nexec(L.decompress(B.b85decode("{RAW}"),format=L.FORMAT_RAW,'
        'filters=[{"id":L.FILTER_LZMA2}]))'
    ),
    "pieces joined": f"import lzma,base64\nexec(lzma.decompress(base64.b85decode(''.join([{B85[:9]!r},{B85[9:]!r}]))))",
    "sums": f"import lzma,base64\np={B85[:9]!r}\np+={B85[9:]!r}\nexec(lzma.decompress(base64.b85decode(p)))",
    "a32 and a85": (
        "import base64,zlib\n"
        f"exec(zlib.decompress(base64.b32decode(base64.a85decode({base64.a85encode(base64.b32encode(Z))!r}))))"
    ),
    "raw deflate": f"import zlib\nexec(zlib.decompress({zlib.compress(DATA, wbits=-15)!r}, -15))",
    "decompressor objects": f"import zlib\nd=zlib.decompressobj()\nexec(d.decompress({Z!r}))",
    "comments at its end": (
        "import zlib\nfrom pathlib import Path\n"
        f"exec(zlib.decompress(bytes.fromhex(Path(__file__).read_text().splitlines()[-1][2:])))\n# {Z.hex()}"
    ),
    "its own file, opened": (
        "import lzma,base64\nwith open(__file__) as f: t=f.read().split('#DATA:')[-1].strip()\n"
        f"exec(lzma.decompress(base64.b85decode(t)))\n#DATA:{B85}\n"
    ),
    "its own file, read where it runs": (
        f"import zlib\nwith open(__file__) as f:\n  exec(zlib.decompress(bytes.fromhex(f.read().split('#')[2])))\n#{Z.hex()}"
    ),
    "a function that decodes": (
        "import lzma,base64\ndef load(s):\n    raw=base64.b85decode(s)\n    return lzma.decompress(raw).decode()\n"
        f"def main():\n    exec(load({B85!r}),{{}})\nmain()"
    ),
    "a loop over decoders": f"import base64,lzma\nd={B85!r}\nfor f in (base64.b85decode,lzma.decompress): d=f(d)\nexec(d)",
    "a stream in memory": f"import gzip,io\nexec(gzip.open(io.BytesIO({gzip.compress(DATA)!r})).read())",
    "bytes under a mask": f"d={bytes(c ^ 85 for c in DATA)!r}\nexec(bytes([c^85 for c in d]))",
    "latin-1 literal": f'#coding:l1\nimport zlib\nexec(zlib.decompress("""{escaped(Z)}""".encode("latin-1")))'.encode(
        "latin-1"
    ),
    "ZIP application": application(),
    "here-document": f"#!/bin/bash\nset -e\npython3 - <<'EOF'\n{PLAIN}EOF\n",
}
BY_FILE = {
    "temporary file and runpy": (
        "import lzma,base64,tempfile,runpy\nf=tempfile.NamedTemporaryFile('wb',suffix='.py',delete=False)\n"
        f"f.write(lzma.decompress(base64.b85decode({B85!r})));f.close()\nrunpy.run_path(f.name,run_name='__main__')"
    ),
    "importlib": (
        f"import lzma,base64,importlib.util as u\nopen('/tmp/t.py','wb').write(lzma.decompress(base64.b85decode({B85!r})))\n"
        "s=u.spec_from_file_location('t','/tmp/t.py');m=u.module_from_spec(s);s.loader.exec_module(m)"
    ),
    "another interpreter": (
        f"import lzma,base64,sys,subprocess as p\np.run([sys.executable,'-c',lzma.decompress(base64.b85decode({B85!r}))])"
    ),
}


def encoded(source):
    return source if isinstance(source, bytes) else source.encode()


@pytest.mark.parametrize("source", WRAPPED.values(), ids=WRAPPED)
def test_the_text_comes_out_of_its_wrapper(source):
    found = unwrap(encoded(source))
    assert found.text == PLAIN and found.layers and not found.faults
    assert found.sizes == (len(encoded(source)), len(DATA))


@pytest.mark.parametrize("source", BY_FILE.values(), ids=BY_FILE)
def test_what_runs_from_a_file_is_not_given_to_exec(source):
    found = unwrap(encoded(source))
    assert found.text == PLAIN and found.layers == ("base85", "lzma") and not found.executed


def test_exec_is_told_from_compile_with_a_file_of_its_own():
    assert unwrap(encoded(WRAPPED["base85 of LZMA"])).executed
    assert unwrap(encoded(WRAPPED["names of its own, compile"])).executed
    assert not unwrap(f'import zlib\nexec(compile(zlib.decompress({Z!r}),"/tmp/t.py","exec"))'.encode()).executed


def test_layers_are_named_from_the_outside_in_and_bounded():
    source = PLAIN
    for _ in range(3):
        source = f"import zlib\nexec(zlib.decompress({zlib.compress(source.encode())!r}))"
    assert unwrap(source.encode()).layers == ("zlib",) * 3 and unwrap(source.encode()).text == PLAIN
    for _ in range(9):
        source = f"import zlib\nexec(zlib.decompress({zlib.compress(source.encode())!r}))"
    assert "more than 8 layers" in unwrap(source.encode()).faults


@pytest.mark.parametrize("form, layers", [("base85", ("base85", "squeeze")), ("latin-1", ("squeeze",))])
def test_a_program_of_our_own_packer_comes_out_by_our_own_decoder(form, layers):
    data = wrap(PLAIN, form)
    found = unwrap(data)
    assert found.text == PLAIN and found.layers == layers and found.sizes == (len(data), len(DATA)) and not found.executed
    changed = unwrap(data.replace(b"4095.5", b"4094.5"))
    assert changed.text != PLAIN and any("code of its own, which is not run" in fault for fault in changed.faults)


def test_our_own_decoder_is_not_kept_busy_by_the_size_that_a_file_states():
    found = unwrap(wrap(PLAIN).replace(f"),{len(DATA)})".encode(), b"),999999999)"))
    assert any("999,999,999" in fault for fault in found.faults)


def test_payloads_may_lie_beside_the_script():
    source = b'import lzma\nexec(lzma.decompress(open("code.xz","rb").read()))'
    assert unwrap(source, read=lambda name: XZ if name == "code.xz" else None).text == PLAIN
    assert unwrap(source).faults


@pytest.mark.parametrize(
    "source, word",
    [
        (f"import marshal,zlib\nexec(marshal.loads(zlib.decompress({zlib.compress(marshal.dumps(1))!r})))", "bytecode"),
        ("def d(s):\n  o=[]\n  for c in s: o.append(chr(ord(c)-1))\n  return ''.join(o)\nexec(d('jnqpsu'))", "of its own"),
        ("import os\nexec(os.environ['CODE'])", "of its own"),
    ],
)
def test_what_cannot_be_unpacked_without_running_it_is_a_fault(source, word):
    found = unwrap(source.encode())
    assert any(word in fault for fault in found.faults) and not found.broken


def test_bytecode_that_a_script_caches_for_itself_and_models_that_it_loads_are_no_fault():
    assert unwrap(b"import pickle\nw = pickle.load(open('model.pkl', 'rb'))\nx = eval('1')").faults == ()


def test_a_payload_that_is_cut_is_certainly_broken_and_one_that_is_tried_is_not():
    cut = f"zlib.decompress({Z[:-9]!r})"
    assert unwrap(f"import zlib\nexec({cut})".encode()).broken
    twice = f"import zlib\nd = {Z!r}\nif x:\n    d = {Z[:-9]!r}\nexec(zlib.decompress(d))"
    for doubt in (
        twice,
        f"import zlib\ntry:\n    exec({cut})\nexcept Exception:\n    pass",
        f"import zlib\nif x:\n    exec({cut})",
    ):
        assert unwrap(doubt.encode()).broken == () and unwrap(doubt.encode()).faults


def test_a_bomb_is_counted_and_not_kept():
    bomb = lzma.compress(bytes(16 << 20), preset=0) * 65
    found = unwrap(b"import lzma\nexec(lzma.decompress(" + repr(bomb).encode() + b"))")
    assert found.bombs and "1,073,741,824" in found.bombs[0]


def test_a_payload_that_is_merely_large_is_a_fault_and_no_bomb():
    large = zlib.compress(bytes(65 << 20))
    found = unwrap(b"import zlib\nexec(zlib.decompress(" + repr(large).encode() + b"))")
    assert found.bombs == () and any("68,157,440" in fault for fault in found.faults)


def test_a_long_script_with_a_packed_helper_keeps_its_own_text():
    own = "".join(f"x{at} = {at} + {at}\n" for at in range(200))
    found = unwrap(f"{own}import zlib\nexec(zlib.decompress({Z!r}))\n".encode())
    assert "x199 = " in found.text and "def f(x)" in found.text


def test_packed_data_that_is_no_program_is_no_layer():
    table = zlib.compress(b"the of and to in " * 20)
    source = f"import zlib\nWORDS = zlib.decompress({table!r}).split()\nprint(WORDS)\n"
    assert unwrap(source.encode()).text == source and unwrap(source.encode()).layers == ()


@pytest.mark.parametrize(
    "source",
    [
        'exec("a"*10**9)',
        'exec("a".replace("a","b"*10**7).replace("b","c"*10**7))',
        "exec(bytes([0]*10**12))",
        "exec(bytes(10**11))",
        "exec(str(1<<10**10))",
        "exec(str(9**9**9))",
        "exec(str([[x for y in range(10**5)] for x in range(10**5)]))",
        'exec(f"{1:>9999999999}")',
        'exec("%99999999999d"%1)',
        "exec(open(__file__).read())",
        "x = " + "+".join(["f(1)"] * 900),
        "x = " + "(" * 5000 + ")" * 5000,
        "x = " + "-" * 9000 + "1",
        "x = a" + ".b()" * 900,
        "x = 1\0",
        "f = lambda s: f(s)\nexec(f('a'))",
        "\n".join(f"exec('import a{at}')" for at in range(500)),
    ],
    ids=lambda source: source[:30],
)
def test_hostile_expressions_end_soon(source):
    assert unwrap(source.encode()).text


def test_nothing_of_a_script_is_run(tmp_path):
    trace = tmp_path / "ran"
    unwrap(f"open({str(trace)!r}, 'w').write('x')\n__import__('os').system('touch {trace}')\nexec('1/0')".encode())
    assert not trace.exists()
