"""An object store in memory that speaks as much of S3 as pyarrow needs; it checks no signature.

    python tests/s3_server.py 127.0.0.1 5000 0.05    # each answer comes after 0.05 s

Objects appear and disappear as in S3: a PUT replaces the whole object at once, and a part of a
multipart upload is seen only once the upload is completed.
"""

import contextlib
import itertools
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000
WHEN = "2026-01-01T00:00:00.000Z"
NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


class Objects:
    """The content of the store; each method is atomic."""

    def __init__(self) -> None:
        self.buckets: set[str] = set()
        self.objects: dict[str, bytes] = {}
        """By "bucket/key"."""
        self.reads: list[tuple[str, int]] = []
        """Every GET of an object: its "bucket/key", and the bytes of the answer."""
        self.requests: list[tuple[str, str]] = []
        """Every request: its method, and its "bucket/key"."""
        self.is_busy: Callable[[str, str], bool] = lambda method, place: False
        """Whether a request is answered by 503, and has no effect."""
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.lock = threading.RLock()
        self._numbers = itertools.count(1)

    def new_upload(self) -> str:
        upload = f"upload-{next(self._numbers)}"
        self.uploads[upload] = {}
        return upload

    def complete(self, path: str, upload: str) -> None:
        parts = self.uploads.pop(upload)
        self.objects[path] = b"".join(parts[number] for number in sorted(parts))

    def listed(self, bucket: str, prefix: str, delimiter: str, after: str, most: int) -> tuple:
        """Keys after `after` and common prefixes, in order, and whether there are more."""
        start, entries = len(bucket) + 1, {}
        for path in self.objects:
            key = path[start:]
            if path.startswith(f"{bucket}/") and key.startswith(prefix):
                end = key.find(delimiter, len(prefix)) if delimiter else -1
                entries[key if end < 0 else key[: end + len(delimiter)]] = end < 0
        later = sorted(name for name in entries if name > after)
        page = later[:most]
        keys = [name for name in page if entries[name]]
        return keys, [name for name in page if not entries[name]], later[most:] != []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # an answer leaves in one packet
    wbufsize, disable_nagle_algorithm = -1, True
    objects: Objects
    latency_s: float

    def handle_expect_100(self) -> bool:
        proceeds = super().handle_expect_100()
        self.wfile.flush()  # the client waits for it before it sends the body
        return proceeds

    def parse(self) -> bool:
        """Split the address into bucket, key and query; read the body; be as slow as a network.

        False if the store is busy, which is then the answer.
        """
        parts = urlsplit(self.path)
        self.place = unquote(parts.path).lstrip("/")
        self.bucket, _, self.key = self.place.partition("/")
        self.query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        self.body = self.read_body()
        time.sleep(self.latency_s)
        with self.objects.lock:
            self.objects.requests.append((self.command, self.place))
            is_busy = self.objects.is_busy(self.command, self.place)
        if is_busy:
            self.xml("Error", "<Code>SlowDown</Code><Message>reduce your rate</Message>", 503)
        return not is_busy

    def read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return unchunked(data) if "x-amz-decoded-content-length" in self.headers else data

    def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        length = headers.pop("length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def xml(self, name: str, content: str, status: int = 200) -> None:
        text = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name} {NAMESPACE}>{content}</{name}>'
        self.answer(status, text.encode(), Content_Type="application/xml")

    def absent(self, code: str) -> None:
        self.xml("Error", f"<Code>{code}</Code><Message>{escape(self.place)}</Message>", 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if not self.parse():
            return None
        with self.objects.lock:
            if self.bucket not in self.objects.buckets:
                return self.absent("NoSuchBucket")
            if not self.key:
                return self.list_objects() if self.command == "GET" else self.answer()
            data = self.objects.objects.get(self.place)
        if data is None:
            return self.absent("NoSuchKey")
        facts = {"ETag": etag(data), "Last_Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            facts["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
            data = data[first : last + 1]
        if self.command == "GET":
            self.objects.reads.append((self.place, len(data)))
        return self.answer(206 if wanted else 200, data, **facts)

    def list_objects(self) -> None:
        query = self.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        most = min(int(query.get("max-keys", PAGE)), PAGE)
        keys, folders, more = self.objects.listed(self.bucket, prefix, delimiter, after, most)
        plain = query.get("encoding-type") != "url"
        rows = [
            f"<Contents><Key>{escape(key if plain else quote(key))}</Key><LastModified>{WHEN}"
            f"</LastModified><Size>{len(self.objects.objects[f'{self.bucket}/{key}'])}</Size>"
            f"</Contents>"
            for key in keys
        ]
        rows += [
            f"<CommonPrefixes><Prefix>{escape(name if plain else quote(name))}</Prefix>"
            f"</CommonPrefixes>"
            for name in folders
        ]
        last = max(keys + folders, default=after)
        token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>"
        head = f"<Prefix>{escape(prefix)}</Prefix><KeyCount>{len(rows)}</KeyCount>"
        end = f"<IsTruncated>{str(more).lower()}</IsTruncated>{token if more else ''}"
        self.xml("ListBucketResult", head + end + "".join(rows))

    def do_PUT(self) -> None:
        if not self.parse():
            return None
        store = self.objects
        with store.lock:
            if not self.key:
                store.buckets.add(self.bucket)
                return self.answer()
            if self.bucket not in store.buckets:
                return self.absent("NoSuchBucket")
            if source := self.headers.get("x-amz-copy-source"):
                data = store.objects.get(unquote(source).lstrip("/"))
                if data is None:
                    return self.absent("NoSuchKey")
                store.objects[self.place] = data
                facts = f"<ETag>{escape(etag(data))}</ETag><LastModified>{WHEN}</LastModified>"
                return self.xml("CopyObjectResult", facts)
            if "uploadId" in self.query:
                store.uploads[self.query["uploadId"]][int(self.query["partNumber"])] = self.body
            else:
                store.objects[self.place] = self.body
        return self.answer(ETag=etag(self.body))

    def do_POST(self) -> None:
        if not self.parse():
            return None
        store = self.objects
        with store.lock:
            if "delete" in self.query:
                for key in re.findall("<Key>(.*?)</Key>", self.body.decode()):
                    store.objects.pop(f"{self.bucket}/{unescaped(key)}", None)
                return self.xml("DeleteResult", "")
            names = f"<Bucket>{self.bucket}</Bucket><Key>{escape(self.key)}</Key>"
            if "uploads" in self.query:
                upload = f"<UploadId>{store.new_upload()}</UploadId>"
                return self.xml("InitiateMultipartUploadResult", names + upload)
            store.complete(self.place, self.query["uploadId"])
            tag = f"<ETag>{escape(etag(store.objects[self.place]))}</ETag>"
            return self.xml("CompleteMultipartUploadResult", names + tag)

    def do_DELETE(self) -> None:
        if not self.parse():
            return None
        with self.objects.lock:
            if "uploadId" in self.query:
                self.objects.uploads.pop(self.query["uploadId"], None)
            else:
                self.objects.objects.pop(self.place, None)
        self.answer(204)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def etag(data: bytes) -> str:
    return f'"{hash(data):x}"'  # Python hashes an object once; clients only compare


def unescaped(text: str) -> str:
    for entity, sign in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        text = text.replace(entity, sign)
    return text


def unchunked(data: bytes) -> bytes:
    """The content of a body in Amazon's chunks: SIZE;signature CRLF content CRLF ..."""
    content, start = b"", 0
    while True:
        end = data.index(b"\r\n", start)
        size = int(data[start:end].split(b";")[0], 16)
        if not size:
            return content
        content += data[end + 2 : end + 2 + size]
        start = end + 2 + size + 2


def make_server(host: str, port: int, latency_s: float = 0.0) -> ThreadingHTTPServer:
    """A server that is to be run by serve_forever; port 0 takes a free one."""
    kind = type("Bound", (Handler,), {"objects": Objects(), "latency_s": latency_s})
    server = ThreadingHTTPServer((host, port), kind)
    server.daemon_threads = True
    return server


def variables(host: str, port: int) -> dict[str, str]:
    """The environment of a process that is to use the server at s3:// addresses."""
    return {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def serving(bucket: str, objects: Objects | None = None) -> Iterator[dict[str, str]]:
    """Serve an empty bucket in a thread of this process; yields the variables for its users."""
    server = make_server("127.0.0.1", 0)
    server.RequestHandlerClass.objects = objects or Objects()
    server.RequestHandlerClass.objects.buckets.add(bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield variables(*server.server_address)
    server.shutdown()
    server.server_close()


if __name__ == "__main__":
    make_server(sys.argv[1], int(sys.argv[2]), *map(float, sys.argv[3:])).serve_forever()
