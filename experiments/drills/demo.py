"""200 requests at a time to the page on 127.0.0.1: every one is answered, memory stays bounded, and it answers on."""

from __future__ import annotations

import http.client
import pathlib
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from drill import BYTES, Trial, WrongError

from drills import small_run
from drills.files import changed_bytes

AT_ONCE = 200


def asked(host: str, picture: bytes, kind: str, random: np.random.Generator) -> int:
    """The status of the answer to one request."""
    connection = http.client.HTTPConnection(host, timeout=100)
    try:
        if kind == "page":
            connection.request("GET", "/")
        elif kind == "forged host":
            connection.request("GET", "/", headers={"Host": "evil.example"})
        elif kind == "nonsense":
            connection.request("POST", "/" + "x" * int(random.integers(0, 3000)), random.bytes(2000))
        else:
            data = picture if kind == "upload" else changed_bytes(picture, random)
            head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
            headers = {"Content-Type": "multipart/form-data; boundary=b"}
            connection.request("POST", "/gradio_api/upload", head + data + b"\r\n--b--\r\n", headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def trials(seed: int, folder: pathlib.Path) -> Iterator[Trial]:
    """Without end: floods of pages, of uploads honest and mutated, of forged hosts and of what is no request."""
    from hap2s_jax import demo, embed, search
    from hap2s_jax.serving import gate, vectors

    encoder = small_run.encoder()
    paths = small_run.images(folder / "gallery")
    embed.embed_images(encoder, folder / "gallery", folder / "gallery.npz", show_progress=False)
    searcher = search.Searcher(encoder, vectors.read(folder / "gallery.npz"))
    _, address, _ = gate.launch(demo.build(searcher, "a drill"), block=False)
    host = address.split("//")[1].rstrip("/")
    picture = paths[0].read_bytes()

    wanted = {"page": {200}, "upload": {200}, "mutated upload": {200}, "forged host": {403}}

    def flood(kind: str, number: int) -> None:
        randoms = [np.random.default_rng((seed, number, n)) for n in range(AT_ONCE)]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with ThreadPoolExecutor(AT_ONCE) as pool:
            codes = set(pool.map(lambda random: asked(host, picture, kind, random), randoms))
        if not codes <= wanted.get(kind, {400, 404, 405, 413, 414, 422}):
            raise WrongError(f"answered with {sorted(codes)}")
        if (grown := (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024) > BYTES:
            raise WrongError(f"{grown / 2**20:.0f} MiB more")
        if asked(host, picture, "page", randoms[0]) != 200:
            raise WrongError("it answers no longer")

    def found(number: int) -> None:
        random = np.random.default_rng((seed, number))
        for _ in range(AT_ONCE):
            path = folder / "query.png"
            path.write_bytes(changed_bytes(picture, random))
            demo.answer(searcher, path, 3)

    number = 0
    while True:
        for kind in ("page", "upload", "mutated upload", "forged host", "nonsense"):
            number += 1
            # The first of each takes what the server's threads and buffers take once.
            yield Trial(kind, lambda k=kind, n=number: flood(k, n), is_warm_up=number <= 5, seconds=120.0)
        yield Trial("answers", lambda n=number: found(n), seconds=120.0)
