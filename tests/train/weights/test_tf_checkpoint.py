"""A checkpoint that TensorFlow 2.21 wrote, every way to damage it, and what TensorFlow would write of larger models."""

import base64
import lzma
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from prepare.common.cli import UserError
from train.weights.tf_checkpoint import LANE, LANES, MAGIC, crc32c, read_bundle

# tf.compat.v1.train.AsyncSaver's files of the variables of `expected_tensors` in the scope "model", compressed by lzma.
INDEX = """\
/Td6WFoAAATm1rRGAgAhARwAAAAQz1jM4AOVAcxdAABgFpJKTYPzxYxr0yMIZz7Co6D5cEvr3l/n463s2NnHeNk/2n1hRWGtEPembQWSr0E8R0K9fUntHRVy
GIvF3tsLVrH468mWMLTBKHE6hkz8lvU/XNNFqM93vrcm9z1XSK7qvhfGYU9+uGHukrHHCwhTmML/Gdo1Z++T8DcaBy4E/xnjRfe3It6Uveltf5HfL65O5yV2
bHonyELNEcQg+XEcYQ57LFQpJm/pSnkBqLiBchvh+Y0bgi/SvgzNIZ8TrXU/VEUU8k1xEUQrOpfVSjSjdyj6Ik/3hHH7RGDf3Io1NyNo6Dqa5aGtre9LkGXQ
0Jx6Dp3+UuaBM60Euqy0PowDLDFBZtpr+2VH3nR/ICJydoesEkdgEwfx2/A2/pmrpr4FQPdMW70PJCb2QfrJ7K+Q5hXO63MCplWPlKZKbbhjRXsiE3ZsCm5H
d2yzEsqje/SnJnxHeSbCduyWsCoVGS6F5QZKVsZu684J1l0ayYYqC7yebWGu8sdthzr4CCcGp9NIva3q0ky46TEunHyUpm1G89wEhTuA9shNCjAmq7JwCje9
aIwAtM0MaV6OsEMBHQ+Wz22YkSm5tFMuWWi8cBwn1j8lZlsXdqGhIYAAueMZGKkHTNkAAegDlgcAAB+fhuOxxGf7AgAAAAAEWVo=
"""
DATA = """\
/Td6WFoAAATm1rRGAgAhARwAAAAQz1jM7E1PAsxdAABh//b6Z4urDZmidahloc6+EsNgfilLq/3IqYFeXXMK6yZUwx4ahWkapVnWniSanhOzPxbRMdnxZHEp
9FN4IKMgVwxBrfIdH0Q7GDXKB37BCig8xx0uYSBFP3aJFplN+sKLZPuSuJ1qXYL3ttkLBxz5+zBDxkXME1yLOMqbLQwSlNjvX9lTK5Yeai+ACOecTnCIMa+Y
TUgak0JNcYswZCBPdC3YznV3pB3dR1FufobVi3esyGhEufmG8eKT82FFfVfP4voMZqFyHoHYOUuWTvakau0lIBichr/CvAHV+4ui9lnyGBLXJqXChGlG7a1Q
d+RME9H5W3FgAus2smUqYcvfrnR/s0VQlckDjZw1vgsCyfUYoWdcCFEJQCff9bi5xN+FtpqWLqXdgYEr7cgethWoUUOSjLMe5YPkqV27AFzv3A8/mQAIhFB+
cxcfuEmTM5KdXYy1l4jRep2J2ZdhPaXramT6BsnibI7kb2j3mm/hsbc1kAPJmRf9/90KzQyA1vAlR++EPRIFHQsAtU0yQG2k1nQF2+O/Cp3tswbB873NO7S6
Cf9hQ17Z2oZ1jd3LxkB8LOl3pEp7oLf2p+9PCK1rMOrnmJ4PE7RxaW13x7lzjnyL8z84uiEWz6vmebaXlSgOVosPPrfhyRJVwCfJr6vt/MMkMVyIDq0BYNmN
gEnYILdzjRBnODPdnq3Wy7PlvQEeAwUZp+2G5O9CP16IeNPX9+yaEj4Vd4WudbrAfp909pjVuBQSk9piohw0eq3fZDissGvRS59OemnlN3VgTfkpq0LSYS3X
YHQPhM1zYg3LdUSgfyx7IxE0+XnaCHYNmE2Y/div1ZAPxCVT+PWRNjEFpbDub8FwTUcM0ZERqq1gHbrOsScYXFmG6WZSWL7pdqxZ5OVbBQj5x9qt/PtSK3TN
HlsgQvndUz34KWQJO4DLKmzftTvwwmWslyAAAFC7TFs3G6hKAAHoBdCaMQBPQS/hscRn+wIAAAAABFla
"""
SHAPE = {"n_vocab": 50257, "n_ctx": 8, "n_embd": 4, "n_head": 2, "n_layer": 2}


def write_tensorflows(folder: Path) -> Path:
    """TensorFlow's files in a folder; returns the path that names them."""
    for name, text in ((".index", INDEX), (".data-00000-of-00001", DATA)):
        (folder / f"model.ckpt{name}").write_bytes(lzma.decompress(base64.b64decode(text)))
    return folder / "model.ckpt"


def expected_tensors() -> dict[str, np.ndarray]:
    """What was written: GPT-2's variables under OpenAI's names, of a formula of their place and their number."""
    C = SHAPE["n_embd"]
    shapes = {"wpe": (SHAPE["n_ctx"], C), "wte": (SHAPE["n_vocab"], C), "ln_f/g": (C,), "ln_f/b": (C,)}
    for layer in range(SHAPE["n_layer"]):
        for name, n_in, n_out in (
            ("attn/c_attn", C, 3 * C),
            ("attn/c_proj", C, C),
            ("mlp/c_fc", C, 4 * C),
            ("mlp/c_proj", 4 * C, C),
        ):
            shapes |= {f"h{layer}/{name}/w": (1, n_in, n_out), f"h{layer}/{name}/b": (n_out,)}
        shapes |= {f"h{layer}/{name}": (C,) for name in ("ln_1/g", "ln_1/b", "ln_2/g", "ln_2/b")}
    tensors = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        values = (np.arange(np.prod(shape)) % 251 * 37 + number * 59) % 251 / 128 - 1
        tensors[f"model/{name}"] = values.astype(np.float32).reshape(shape)
    return tensors


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert np.array_equal(tensor.numpy(), expected[name]), name


def test_tensorflows_checkpoint_is_read(tmp_path: Path) -> None:
    bundle = write_tensorflows(tmp_path)
    assert_same(read_bundle(bundle, "model/"), expected_tensors())
    some = {name: values for name, values in expected_tensors().items() if name.startswith("model/h1/")}
    assert_same(read_bundle(bundle, "model/h1/"), some)


def test_every_damage_is_one_clear_mistake(tmp_path: Path) -> None:
    """Cut anywhere, or with a byte changed anywhere: refused, or read as it was. Only one small tensor is asked for, to
    be quick: the index is read whole for it."""
    bundle, name = write_tensorflows(tmp_path), "model/h0/ln_1/b"
    index, expected = bundle.with_name("model.ckpt.index"), {name: expected_tensors()[name]}
    whole, same = index.read_bytes(), 0
    damaged = [whole[:n] for n in range(0, len(whole), 23)]
    damaged += [whole[:n] + bytes([whole[n] ^ 1 << n % 8]) + whole[n + 1 :] for n in range(0, len(whole), 3)]
    for content in damaged:
        index.write_bytes(content)
        try:
            found = read_bundle(bundle, name)
        except UserError as mistake:
            assert "a damaged TensorFlow checkpoint" in str(mistake)  # noqa: PT017
            continue
        assert_same(found, expected)
        same += 1
    assert same <= 18  # about a third of the 49 bytes that nobody reads: the meta index, and the footer's padding


def test_damaged_and_missing_data(tmp_path: Path) -> None:
    bundle = write_tensorflows(tmp_path)
    data = bundle.with_name("model.ckpt.data-00000-of-00001")
    whole = data.read_bytes()
    data.write_bytes(whole[:500] + bytes([whole[500] ^ 4]) + whole[501:])
    with pytest.raises(UserError, match=r"model/h0/\S+ is truncated or changed: its checksum is another"):
        read_bundle(bundle, "model/")
    os.truncate(data, 700_000)
    with pytest.raises(UserError, match="model/wte is truncated or changed"):
        read_bundle(bundle, "model/wte")
    data.write_bytes(b"")
    with pytest.raises(UserError, match="damaged TensorFlow checkpoint"):
        read_bundle(bundle, "model/")
    data.unlink()
    with pytest.raises(UserError, match="data-00000-of-00001 is missing"):
        read_bundle(bundle, "model/")
    bundle.with_name("model.ckpt.index").unlink()
    with pytest.raises(UserError, match=r"model\.ckpt\.index is missing"):
        read_bundle(bundle, "model/")


# --- written here: what a fixture would be too large for --------------------------------------------------------------


def varint(value: int) -> bytes:
    return bytes([value % 128 | 128]) + varint(value // 128) if value > 127 else bytes([value])


def masked(content: bytes) -> bytes:
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def write_bundle(
    bundle: Path, files: Sequence[Mapping[str, np.ndarray]], header: bytes = b"", compression: int = 0
) -> None:
    """A bundle of some data files, float32 unless the array is int64, with two entries in each block of its index."""
    entries = {b"": b"\x08" + varint(len(files)) + header}
    for number, tensors in enumerate(files):
        content = b""
        for name, tensor in tensors.items():
            raw = tensor.tobytes()
            dimensions = b"".join(b"\x12" + varint(1 + len(varint(n))) + b"\x08" + varint(n) for n in tensor.shape)
            fields = b"\x08" + varint({"f": 1, "i": 9}[tensor.dtype.kind])
            fields += b"\x12" + varint(len(dimensions)) + dimensions
            fields += b"\x18" + varint(number) + b"\x20" + varint(len(content)) + b"\x28" + varint(len(raw))
            entries[name.encode()] = fields + b"\x35" + masked(raw)
            content += raw
        bundle.with_name(f"{bundle.name}.data-{number:05}-of-{len(files):05}").write_bytes(content)
    table, handles, names = b"", {}, sorted(entries)
    for start in range(0, len(names), 2):
        place, content = len(table), block({name: entries[name] for name in names[start : start + 2]})
        table += content + bytes([compression]) + masked(content + bytes([compression]))
        handles[names[start : start + 2][-1]] = varint(place) + varint(len(content))
    place, content = len(table), block(handles)
    footer = b"\x00\x00" + varint(place) + varint(len(content))
    table += content + b"\x00" + masked(content + b"\x00") + footer.ljust(40, b"\x00") + struct.pack("<Q", MAGIC)
    bundle.with_name(bundle.name + ".index").write_bytes(table)


def block(entries: Mapping[bytes, bytes]) -> bytes:
    content, before = b"", b""
    for key, value in entries.items():
        shared = 0
        while shared < len(before) and before[shared] == key[shared]:  # sorted: the one before never has more
            shared += 1
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return content + struct.pack("<II", 0, 1)  # one restart, at the beginning


def test_several_blocks_and_files(tmp_path: Path) -> None:
    files = [{f"model/{k}{n}": np.full((n, 3), k + n, np.float32) for n in range(1, 6)} for k in range(3)]
    files[1] |= {"step": np.array(7), "model/scalar": np.array(2.5, np.float32)}
    write_bundle(tmp_path / "model.ckpt", files)
    expected = {name: values for tensors in files for name, values in tensors.items() if name != "step"}
    assert_same(read_bundle(tmp_path / "model.ckpt", "model/"), expected)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"files": [{"model/wte": np.arange(4)}]}, "model/wte is no float32 tensor in one piece"),
        ({"files": [{}], "header": b"\x10\x01"}, "it is big-endian"),
        ({"files": [{}], "compression": 1}, "it is compressed"),
    ],
)
def test_what_openai_never_wrote_is_named(tmp_path: Path, written: dict, message: str) -> None:
    write_bundle(tmp_path / "model.ckpt", **written)
    with pytest.raises(UserError, match=message):
        read_bundle(tmp_path / "model.ckpt", "model/")


def test_crc32c_by_the_bit() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's polynomial, the check value of all catalogues
    crcs = [0] * 256
    for byte in range(256):
        crcs[byte] = byte
        for _ in range(8):
            crcs[byte] = crcs[byte] >> 1 ^ (crcs[byte] & 1) * 0x82F63B78
    data = np.random.default_rng(0).integers(256, size=LANES * LANE + 9, dtype=np.uint8).tobytes()
    crc, asked = 2**32 - 1, {*range(20), *range(250, 260), 1023, 1024, 1025, *range(LANES * LANE - 1, len(data) + 1)}
    for n in range(len(data) + 1):
        if n in asked:
            assert crc32c(data[:n]) == crc ^ 2**32 - 1, n
        if n < len(data):
            crc = crc >> 8 ^ crcs[(crc ^ data[n]) & 255]
