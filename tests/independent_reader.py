"""Reads a data directory by storage/FORMAT.md alone: {(sorted pairs of labels with __name__, time): the value's bits}."""

import json
from pathlib import Path
from struct import unpack_from
from zlib import decompress

import numpy as np
from crc32c import crc32c
from pcodec.standalone import simple_decompress

VERSIONS = (b"\1\0\0\0", b"\2\0\0\0")


def read(data: Path, tier: str = "raw") -> dict:
    segments = sorted(map(segment, (data / "segments").glob("*.seg")), key=lambda s: (s[0]["order"], s[0]["number"]))
    replaced, done = {n for f, _ in segments for n in f["replaces"]}, max((f["wal"] for f, _ in segments), default=0)
    parts = [samples for f, samples in segments if f["tier"] == tier and f["number"] not in replaced]
    logs = [path for path in sorted((data / "wal").glob("*.wal")) if tier == "raw" and int(path.stem) > done]
    return {key: bits for part in parts + list(map(wal, logs)) for key, bits in part.items()}


def wal(path: Path) -> dict:
    b, owners, shapes, sets, found, at = path.read_bytes(), {}, {}, {}, {}, 32
    assert (b[:8], crc32c(b[:28])) == (b"CDWL\1\0\0\0", int.from_bytes(b[28:32], "little"))
    while at + 16 <= len(b):
        magic, length, crc, kind = unpack_from("<4sIII", b, at)
        p = b[at + 16 : at + 16 + length]
        valid = magic == b"FRAM" and len(p) == length and crc32c(b[at + 12 : at + 16 + length]) == crc
        at += 16 + (length + 7) // 8 * 8 if valid else 8
        if valid and kind == 1:
            size, words = unpack_from("<II", p)
            owners.update(json.loads(p[8 : 8 + size])["owners"])
            shapes.update({s[0]: [["__name__", s[1]], *s[2]] for s in json.loads(p[8 : 8 + size])["shapes"]})
            u = np.frombuffer(p, "<u4", words, (11 + size) // 4 * 4).tolist()
            while u:
                sets[u[0]], u = (u[1], u[3 : 3 + u[2]]), u[3 + u[2] :]
        elif valid and kind == 2:
            (r, g, n), end, c = unpack_from("<III", p), 16, []
            for count, width in zip((r, r, g, g, g, n, n, n, n), (4, 8, 4, 8, 8, 4, 4, 8, 8), strict=True):
                c.append(np.frombuffer(p, "<i8" if width == 8 else "<u4", count, end).tolist())
                end += (count * width + 7) // 8 * 8
            cells = [(sets[s][0], shape, t) for s, t in zip(c[0], c[1], strict=True) for shape in sets[s][1]]
            rows = zip(cells, np.frombuffer(p, "<i8", len(cells), end).tolist(), strict=True)
            loose = zip(zip(*c[5:8], strict=True), c[8], strict=True)
            for (o, s, t), v in [row for row in rows if row[1] != 0x7FF4C011EC70D000] + list(loose):
                found[tuple(sorted(map(tuple, owners[o] + shapes[s]))), t] = v
    return found


def segment(path: Path) -> tuple[dict, dict]:
    b, found, (at, size, crc, _, own) = path.read_bytes(), {}, unpack_from("<QIIII", path.read_bytes()[-32:])
    assert (b[:4], b[-4:], b[4:8], crc32c(b[-32:-12])) == (b"CDSG", b"CDSG", b[-8:-4], own)
    assert b[4:8] in VERSIONS
    f = json.loads(b[at : at + size]) if crc32c(b[at : at + size]) == crc else None
    owners, shapes, vector, counts = (block(b, *f[x]) for x in ("owners", "shapes", "series_vector", "vector_count"))
    tables = (block(b, *f[x]).reshape(-1, 3)[:, :2].tolist() for x in ("time_blocks", "value_blocks"))
    times, values = (np.concatenate([block(b, *place) for place in table]) for table in tables)
    order = block(b, *f["value_order"]) if "value_order" in f else np.arange(len(vector))
    times, values = np.split(times, np.cumsum(counts)), np.split(values.view("i8"), np.cumsum(counts[vector[order]]))
    values = [values[place] for place in np.argsort(order)]
    for i, (s, o) in enumerate(zip(block(b, *f["series_shape"]), block(b, *f["series_owner"]), strict=True)):
        name = tuple(sorted(map(tuple, [["__name__", shapes[s][0]], *shapes[s][1], *owners[o]])))
        found |= {(name, t): v for t, v in zip(times[vector[i]].tolist(), values[i].tolist(), strict=True)}
    return f, found


def block(b: bytes, at: int, size: int):
    (length, crc, kind, exponent, _, _), p = unpack_from("<IIBbHI", b, at), b[at + 16 : at + size]
    assert (length + 16, crc) == (size, crc32c(b[at + 8 : at + size]))
    if kind != 2:
        return json.loads(decompress(p)) if kind == 5 else simple_decompress(p)
    few, size = unpack_from("<II", p)
    m, odd = simple_decompress(p[8 + size :]), simple_decompress(p[8 : 8 + size]) if few else np.empty(0, "i8")
    v = m / 10.0**exponent if exponent >= 0 else m * 2.0**-exponent
    v.view("i8")[odd[:few]] = odd[few:]
    return v
