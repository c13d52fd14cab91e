#!/usr/bin/env python3
"""`twinkle pull` against a server on this machine that answers as the Hugging Face hub does.

    TWINKLE=path/to/twinkle python3 tests/pull.py

The server lists a model's files with sizes and hashes, redirects large ones to another address, sends ranges, and can be
told to misbehave: to break off in the middle, to send other bytes, to know nothing about ranges, to refuse.
"""

import hashlib
import http.server
import json
import os
import random
import re
import shutil
import sys
import threading
import urllib.parse

from harness import COUNTS, WORK, check, new_folder, ok, refuse, run

os.environ.pop("HF_TOKEN", None)
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
LARGE = re.compile(r"\.(safetensors|bin|model|h5|msgpack)$")  # what the hub keeps in its large file storage


class Hub(http.server.BaseHTTPRequestHandler):
    """One model, `acme/tiny`, whose files are in `files`."""

    protocol_version = "HTTP/1.1"
    files, requests = {}, []
    breaks = {}  # name -> after how many bytes each of the next answers breaks off
    replaced = {}  # name -> what is sent instead
    ranges, plain_list = True, False
    status = token = redirect = None

    @classmethod
    def reset(cls, files, **how):
        cls.files, cls.requests, cls.breaks, cls.replaced = files, [], {}, {}
        cls.ranges, cls.plain_list, cls.status, cls.token, cls.redirect = True, False, None, None, None
        for name, value in how.items():
            setattr(cls, name, value)

    @classmethod
    def fetched(cls):
        """The files that were asked for, in order, without the redirects' second half."""
        return [path.rsplit("/", 1)[1] for path, _ in cls.requests if "/resolve/" in path]

    def log_message(self, *_):
        pass

    def entry(self, name, tree=False):
        body = self.files[name]
        digest = hashlib.sha256(body).hexdigest()
        blob = hashlib.sha1(f"blob {len(body)}\0".encode() + body).hexdigest()
        if tree:
            entry = {"type": "file", "path": name, "size": len(body), "oid": blob}
            large = {"oid": digest, "size": len(body), "pointerSize": 135}
        elif self.plain_list:
            return {"rfilename": name}
        else:
            entry = {"rfilename": name, "size": len(body), "blobId": blob}
            large = {"sha256": digest, "size": len(body), "pointerSize": 135}
        return {**entry, "lfs": large} if LARGE.search(name) else entry

    def do_GET(self):  # the name is http.server's
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        self.requests.append((path, self.headers.get("Range")))
        if self.status:
            return self.answer(self.status, b'{"error":"no"}')
        if self.token and path.startswith(("/api/", "/acme/")) and self.headers.get("Authorization") != f"Bearer {self.token}":
            return self.answer(401, b'{"error":"Invalid username or password."}')
        listed = ("/api/models/acme/tiny", "/api/models/acme/tiny/revision/v2")
        if path in listed and self.plain_list != "tree alone" and not (self.plain_list == "no query" and url.query):
            listing = {"id": "acme/tiny", "sha": "0" * 40, "siblings": [self.entry(name) for name in self.files]}
            return self.answer(200, json.dumps(listing).encode())
        if path == "/api/models/acme/tiny/tree/main" and self.plain_list != "no tree":
            return self.answer(200, json.dumps([self.entry(name, tree=True) for name in self.files]).encode())
        found = re.fullmatch(r"/acme/tiny/resolve/(main|v2)/(.+)", path)
        if found and found[2] in self.files:
            name = found[2]
            body = self.files[name]
            if not LARGE.search(name):
                return self.send(name, self.replaced.get(name, body))
            digest = hashlib.sha256(body).hexdigest()
            target = self.redirect or f"/storage/{digest}/{name}?signature=a%2Fb"
            headers = {"Location": target, "X-Linked-Size": str(len(body)), "X-Linked-ETag": f'"{digest}"'}
            return self.answer(302, b"", headers)
        found = re.fullmatch(r"/storage/[0-9a-f]{64}/(.+)", path)
        if found and url.query == "signature=a%2Fb":
            return self.send(found[1], self.replaced.get(found[1], self.files[found[1]]))
        return self.answer(404, b'{"error":"Repository not found"}')

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send(self, name, body):
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted and self.ranges else 0
        if start and start >= len(body):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        rest = body[start:]
        if self.breaks.get(name):
            rest = rest[: self.breaks[name].pop(0)]
            self.close_connection = True
        self.wfile.write(rest)


def some_bytes(seed, count):
    return random.Random(seed).randbytes(count)


def whole_model():
    return {
        ".gitattributes": b"*.safetensors filter=lfs\n",
        "README.md": b"# tiny\n",
        "config.json": b'{"model_type":"gpt2"}\n',
        "generation_config.json": b"{}\n",
        "tokenizer.json": b'{"version":"1.0"}\n',
        "vocab.json": b"{}",
        "merges.txt": b"",
        "spiece.model": some_bytes(3, 777),
        "model.safetensors": some_bytes(1, 300_001),
        "pytorch_model.bin": some_bytes(2, 5000),
        "tf_model.h5": some_bytes(4, 5000),
        "onnx/model.onnx": b"x",
    }


NEEDED = ["config.json", "generation_config.json", "tokenizer.json", "vocab.json", "merges.txt", "spiece.model"]


def pull(url, folder, *more):
    return ("pull", "acme/tiny", "--to", folder, "--endpoint", url, *more)


def holds(folder, names):
    there = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert there == sorted(names), f"the folder holds {there}"
    for name in names:
        assert (folder / name).read_bytes() == Hub.files[name], f"{name} has other bytes"


def fresh(name):
    shutil.rmtree(WORK / name, ignore_errors=True)
    return WORK / name


def plain_cases(url):
    with check("a model, and nothing but what is needed"):
        Hub.reset(whole_model())
        ok(*pull(url, fresh("a") / "b"))
        holds(WORK / "a" / "b", [*NEEDED, "model.safetensors"])
    with check("a second run fetches nothing"):
        Hub.requests.clear()
        result = ok(*pull(url, WORK / "a" / "b", "--json")).object()
        assert not Hub.fetched(), f"fetched {Hub.fetched()} again"
        assert result["fetched_bytes"] == 0 and not any(file["fetched"] for file in result["files"]), result
    with check("one file is fetched again where it is damaged"):
        (WORK / "a" / "b" / "model.safetensors").write_bytes(some_bytes(9, 300_001))
        Hub.requests.clear()
        ok(*pull(url, WORK / "a" / "b"))
        assert Hub.fetched() == ["model.safetensors"], Hub.fetched()
        holds(WORK / "a" / "b", [*NEEDED, "model.safetensors"])
    with check("an address that ends in /"):
        ok(*pull(url + "/", fresh("a")))
    with check("a revision"):
        Hub.reset(whole_model())
        ok(*pull(url, fresh("a"), "--revision", "v2"))
        assert all("/v2" in path or "/storage/" in path for path, _ in Hub.requests), Hub.requests
    with check("HF_ENDPOINT"):
        ok("pull", "acme/tiny", "--to", fresh("a"), HF_ENDPOINT=url)
    with check("PyTorch weights where there are no others"):
        files = whole_model()
        del files["model.safetensors"]
        Hub.reset(files)
        ok(*pull(url, fresh("a")))
        holds(WORK / "a", [*NEEDED, "pytorch_model.bin"])
    for index, form in (("model.safetensors.index.json", "model-{}-of-2.safetensors"), ("pytorch_model.bin.index.json", "pytorch_model-{}-of-2.bin")):
        with check(f"shards by {index}"):
            shards = [form.format(i) for i in (1, 2)]
            names = {"a": shards[0], "b": shards[1], "c": shards[0]}
            files = {"config.json": b"{}", index: json.dumps({"weight_map": names}).encode(), "other.safetensors": b"x"}
            files.update({shard: some_bytes(i, 1000 + i) for i, shard in enumerate(shards)})
            Hub.reset(files)
            ok(*pull(url, fresh("a")))
            holds(WORK / "a", ["config.json", index, *shards])
    for how in (True, "no tree", "no query", "tree alone"):
        with check(f"a list without sizes ({how})"):
            Hub.reset(whole_model(), plain_list=how)
            ok(*pull(url, fresh("a")))
            holds(WORK / "a", [*NEEDED, "model.safetensors"])
            Hub.requests.clear()
            ok(*pull(url, WORK / "a"))
            assert not Hub.fetched(), f"fetched {Hub.fetched()} again"
            Hub.replaced["model.safetensors"] = some_bytes(9, 300_001)
            refuse(*pull(url, fresh("a")))
            assert not (WORK / "a" / "model.safetensors").exists()


def breaks(url):
    with check("a connection that breaks in the middle"):
        Hub.reset(whole_model(), breaks={"model.safetensors": [100_000, 50_000]})
        ok(*pull(url, fresh("a")))
        holds(WORK / "a", [*NEEDED, "model.safetensors"])
        ranges = [asked for path, asked in Hub.requests if path.startswith("/storage/") and path.endswith("model.safetensors")]
        assert ranges == [None, "bytes=100000-", "bytes=150000-"], ranges
    with check("a run that fails leaves what it has, and the next goes on"):
        Hub.reset(whole_model(), breaks={"model.safetensors": [100_000, 0, 0, 0]})
        refuse(*pull(url, fresh("a")))
        assert not (WORK / "a" / "model.safetensors").exists()
        assert (WORK / "a" / "model.safetensors.part").stat().st_size == 100_000
        Hub.reset(whole_model())
        result = ok(*pull(url, WORK / "a", "--json")).object()
        assert Hub.fetched() == ["model.safetensors"], Hub.fetched()
        assert Hub.requests[-1][1] == "bytes=100000-", Hub.requests[-1]
        assert result["fetched_bytes"] == 200_001, result
        holds(WORK / "a", [*NEEDED, "model.safetensors"])
    with check("what is left of another version is thrown away"):
        folder = new_folder("a")
        (folder / "model.safetensors.part").write_bytes(some_bytes(8, 100_000))
        Hub.reset(whole_model())
        ok(*pull(url, folder))
        holds(folder, [*NEEDED, "model.safetensors"])
        assert Hub.fetched().count("model.safetensors") == 2, Hub.fetched()
    with check("what is left is longer than the file"):
        folder = new_folder("a")
        (folder / "model.safetensors.part").write_bytes(some_bytes(8, 400_000))
        ok(*pull(url, folder))
        holds(folder, [*NEEDED, "model.safetensors"])
    with check("all is there but the last step"):
        folder = new_folder("a")
        (folder / "model.safetensors.part").write_bytes(Hub.files["model.safetensors"])
        Hub.requests.clear()
        ok(*pull(url, folder))
        assert "model.safetensors" not in Hub.fetched(), Hub.fetched()
        holds(folder, [*NEEDED, "model.safetensors"])
    with check("a server that knows nothing about ranges"):
        Hub.reset(whole_model(), breaks={"model.safetensors": [100_000]}, ranges=False)
        ok(*pull(url, fresh("a")))
        holds(WORK / "a", [*NEEDED, "model.safetensors"])


def refusals(url):
    with check("other bytes than the hash says"):
        Hub.reset(whole_model(), replaced={"model.safetensors": some_bytes(9, 300_001)})
        result = refuse(*pull(url, fresh("a")))
        assert b"SHA-256" in result.err, result.err
        assert Hub.fetched().count("model.safetensors") == 1
        assert not list((WORK / "a").glob("model.safetensors*"))
    with check("another size than the list says"):
        Hub.reset(whole_model(), replaced={"tokenizer.json": b"{}"})
        assert b"size" in refuse(*pull(url, fresh("a"))).err
        assert not list((WORK / "a").glob("tokenizer.json*"))
    with check("no such model"):
        result = refuse("pull", "acme/none", "--to", fresh("a"), "--endpoint", url)
        assert b"404" in result.err, result.err
        assert not (WORK / "a").exists(), "a folder was left behind"
    with check("no such revision"):
        refuse(*pull(url, fresh("a"), "--revision", "v3"))
    for status in (401, 403, 500):
        with check(f"status {status}"):
            Hub.reset(whole_model(), status=status)
            assert str(status).encode() in refuse(*pull(url, fresh("a"))).err
            assert not (WORK / "a").exists()
    with check("a token"):
        Hub.reset(whole_model(), token="hf_abc")
        assert b"HF_TOKEN" in refuse(*pull(url, fresh("a"))).err
        refuse(*pull(url, fresh("a")), HF_TOKEN="hf_abd")
        ok(*pull(url, fresh("a")), HF_TOKEN="hf_abc")
        refuse(*pull(url, fresh("a")), HF_TOKEN='x"\nurl = "http://127.0.0.1:1/')
    for name in ("../config.json", "/etc/x", "a/../../x", "a\\b", "c:x", "", "a//b", "a\nb", ".."):
        with check(f"the hub lists {name!r}"):
            Hub.reset({**whole_model(), name: b"x"})
            refuse(*pull(url, fresh("a")))
            assert not (WORK / "a").exists()
    for shard in ("../model-1.safetensors", "/tmp/x", "a/model-1.safetensors", "", 3, None):
        with check(f"an index that names {shard!r}"):
            files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps({"weight_map": {"a": shard}}).encode()}
            Hub.reset(files)
            refuse(*pull(url, fresh("a") / "b"))
            assert sorted(os.listdir(WORK / "a")) == ["b"]
    for missing in ("config.json", "model.safetensors"):
        with check(f"no {missing}"):
            files = {name: body for name, body in whole_model().items() if name not in (missing, "pytorch_model.bin")}
            Hub.reset(files)
            refuse(*pull(url, fresh("a")))
    for listing in (b"", b"{}", b"[]", b"<html>", b'{"siblings":3}'):
        with check(f"the list is {listing!r}"):
            Hub.reset(whole_model())
            broken = type("Broken", (Hub,), {"do_GET": lambda self, listing=listing: self.answer(200, listing)})
            with serving(broken) as other:
                refuse(*pull(other, fresh("a")))
    with check("a redirect to a file"):
        Hub.reset(whole_model(), redirect="file:///etc/passwd")
        refuse(*pull(url, fresh("a")))
    with check("a redirect without end"):
        Hub.reset(whole_model(), redirect="/acme/tiny/resolve/main/model.safetensors")
        refuse(*pull(url, fresh("a")))
    with check("nobody there"):
        refuse(*pull("http://127.0.0.1:1", fresh("a")))
    with check("no curl"):
        result = refuse(*pull(url, fresh("a")), PATH=str(new_folder("empty")))
        assert b"curl" in result.err, result.err


def command_line(url):
    to = ("--to", fresh("a"), "--endpoint", url)
    for name in ("", ".", "..", "../x", "a/../b", "/a", "a/", "a//b", "a/b/c", "a b", "-a", "$(touch x)", "a;b", "a\nb", "a%2fb", "a?b", "\u00e9"):
        with check(f"the name {name!r}"):
            refuse("pull", "--", name, status=2)
            refuse("pull", *to, "--", name, status=2)
    for endpoint in ("ftp://127.0.0.1", "file:///etc", "127.0.0.1", "http://a b", 'http://a"b', "http://a\nb"):
        with check(f"the endpoint {endpoint!r}"):
            refuse("pull", "acme/tiny", "--to", fresh("a"), "--endpoint", endpoint, status=2)
    with check("options"):
        refuse("pull", status=2)
        refuse("pull", "acme/tiny", "--endpoint", url, status=2)
        refuse("pull", "acme/tiny", *to, "--revision", "../x", status=2)
        refuse("pull", "acme/tiny", *to, "--revision", "-x", status=2)
    assert not (WORK / "a").exists()
    with check("a folder with blanks and quotes in its name"):
        Hub.reset(whole_model())
        folder = fresh("""it's "a" $(folder) ; -o""")
        ok(*pull(url, folder))
        holds(folder, [*NEEDED, "model.safetensors"])
    with check("a folder that cannot be made"):
        (WORK / "file").write_text("x")
        refuse(*pull(url, WORK / "file" / "a"))
        refuse(*pull(url, WORK / "file"))
    with check("a model without weights of any bytes"):
        Hub.reset({"config.json": b"{}", "model.safetensors": b""})
        ok(*pull(url, fresh("a")))
        holds(WORK / "a", ["config.json", "model.safetensors"])


class serving:
    """A server with this handler while the block runs; its address."""

    def __init__(self, handler):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # a connection that the other side closed

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def main():
    with serving(Hub) as url:
        if run("pull", "--help").status or not shutil.which("curl"):
            sys.exit("there is no curl")
        for group in (plain_cases, breaks, refusals, command_line):
            group(url)
    print(f"{COUNTS['passed']} passed, {COUNTS['failed']} failed")
    return 1 if COUNTS["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
