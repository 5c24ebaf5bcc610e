"""A small Hugging Face hub and a small W&B on this machine, for tests of their own clients.

    with Hub() as hub:
        hub.add('datasets/who/what', {'train.txt': b'One day.'}, commit='0' * 40)
        done = hub.python('print(1)')  # a child process that knows no other hub

The hub serves repositories, takes uploads (by git LFS, or by Xet with `Hub(xet=True)`),
and fails as it is told to.
"""
import base64
import contextlib
import gzip
import hashlib
import http.server
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

NEVER = 'never'  # no answer at all
BREAK = 'break'  # once: half of what was promised, and the end of the connection
REPO = r'(?P<repo>(?:datasets/)?[\w.-]+/[\w.-]+)'
REVISION = r'(?P<revision>[\w.-]+)'


class Answer(NamedTuple):
    "What goes back to the client."
    status: int
    body: bytes = b''
    headers: dict = {}


def as_json(value, status=200):
    "An answer in JSON."
    return Answer(status, json.dumps(value).encode(), {'Content-Type': 'application/json'})


class Done(NamedTuple):
    "How a child process ended."
    code: int
    out: str
    err: str
    seconds: float


class LocalServer:
    "A server on the loopback address; it serves while its `with` block runs."
    handler: type  # of requests

    def __enter__(self):
        self.closing = threading.Event()
        self.folder = tempfile.TemporaryDirectory()
        handler = type('OwnHandler', (self.handler,), dict(hub=self))
        self.server = QuietServer(('127.0.0.1', 0), handler)
        self.address = f'http://127.0.0.1:{self.server.server_port}'
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.folder.cleanup()

    def variables(self):
        "What a client reads from its environment."
        raise NotImplementedError

    def python(self, program, *args, limit=120, **variables):
        "Run a program in a child process; it may take so many seconds."
        command = [sys.executable, '-c', program, *map(str, args)]
        return self.run(command, limit, **variables)

    def run(self, command, limit=120, **variables):
        "Run a command in a child process that knows this server and no other."
        inherited = {name: value for name, value in os.environ.items()
                     if not name.startswith(('HF_', 'HUGGING', 'WANDB_'))}
        loopback = dict(NO_PROXY='127.0.0.1', no_proxy='127.0.0.1')
        environment = {**inherited, **loopback, **self.variables(), **variables}
        start = time.monotonic()
        done = subprocess.run(command, env=environment, timeout=limit,
                              stdin=subprocess.DEVNULL, capture_output=True,
                              encoding='utf-8')
        seconds = time.monotonic() - start
        return Done(done.returncode, done.stdout, done.stderr, seconds)


class QuietServer(http.server.ThreadingHTTPServer):
    "Says nothing of clients that are gone."
    daemon_threads = True

    def handle_error(self, request, client_address):
        "Say what is wrong with us, and nothing of a connection that is closed."
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class QuietHandler(http.server.BaseHTTPRequestHandler):
    "Answers one connection after another, and prints nothing."
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        "Say nothing."


# ------------------------------------------------------------------- the Hugging Face hub

class Handler(QuietHandler):
    "Answers one connection of a client."
    hub: 'Hub'

    def do_GET(self):
        "Answer a request, by a fault or by what is asked for."
        path = unquote(urlsplit(self.path).path)
        length = int(self.headers.get('Content-Length') or 0)
        body = self.rfile.read(length)
        asked_range = self.headers.get('Range')
        self.hub.requests.append(
            f'{self.command} {path}' + (f' {asked_range}' if asked_range else ''))
        fault = self.fault(path)
        if fault == NEVER:
            self.hub.closing.wait()
            self.close_connection = True
            return
        refusal = Answer(fault, b'no') if isinstance(fault, int) else None
        answer = refusal or self.answer(path, body)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send(answer, half=fault == BREAK)

    do_HEAD = do_POST = do_PUT = do_GET

    def fault(self, path):
        "The fault that a path has, or None; a connection breaks once."
        for pattern, fault in list(self.hub.faults.items()):
            if not re.search(pattern, path):
                continue
            if fault != BREAK:
                return fault
            if self.command == 'GET' and self.hub.faults.pop(pattern, None):
                return fault
        return None

    def send(self, answer, half):
        "Send an answer, or the half of it."
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(answer.body)))
        self.end_headers()
        if self.command == 'HEAD':
            return
        if half:
            self.wfile.write(answer.body[:len(answer.body) // 2])
            self.close_connection = True
            return
        self.wfile.write(answer.body)

    def answer(self, path, body):
        "Find out what is asked for."
        token = self.headers.get('Authorization', '').removeprefix('Bearer ')
        if token and token not in self.hub.tokens:
            return as_json(dict(error='Invalid credentials in Authorization header'), 401)
        for pattern, method in ROUTES.items():
            match = re.fullmatch(pattern, f'{self.command} {path}')
            if match and method in WRITING and token != self.hub.tokens[-1]:
                return as_json(dict(error='no permission'), 403 if token else 401)
            if match:
                return method(self, body, **match.groupdict())
        return as_json(dict(error='Not Found'), 404)

    # ------------------------------------------------------------------------- reading

    def who(self, body):
        "Whose token it is."
        if self.headers.get('Authorization') is None:
            return as_json(dict(error='Unauthorized'), 401)
        return as_json(dict(type='user', name='who', orgs=[]))

    def info(self, body, repo, revision=None):
        "What a repository holds."
        commit, files = self.hub.files(repo, revision or 'main')
        if files is None:
            kind = 'Revision' if repo in self.hub.repositories else 'Repo'
            answer = as_json(dict(error=f'{kind} not found'), 404)
            answer.headers['X-Error-Code'] = f'{kind}NotFound'
            return answer
        siblings = [dict(rfilename=path) for path in files]
        return as_json(dict(id=repo.removeprefix('datasets/'), sha=commit,
                            private=repo in self.hub.private, siblings=siblings,
                            tags=[]))

    def tree(self, body, repo, revision, folder=''):
        "The files and folders in a folder, or below it."
        _, files = self.hub.files(repo, revision)
        folder = f'{folder}/' if folder else ''
        below = [path for path in files or () if path.startswith(folder)]
        if not below:
            return Answer(404, b'', {'X-Error-Code': 'EntryNotFound'})
        recursive = re.search('recursive=true', self.path, re.I)
        entries = {}
        for path in below:
            name, slash, _ = path.removeprefix(folder).partition('/')
            if slash:
                entries[folder + name] = dict(type='directory', path=folder + name,
                                              size=0, oid='0' * 40)
            if recursive or not slash:
                entries[path] = entry(path, files[path])
        return as_json(list(entries.values()))

    def paths_info(self, body, repo, revision):
        "What some paths are."
        _, files = self.hub.files(repo, revision)
        asked = parse_qs(body.decode()).get('paths') or json.loads(body)['paths']
        return as_json([entry(path, files[path]) for path in asked if path in files])

    def resolve(self, body, repo, revision, path):
        "A file, or a range of its bytes."
        commit, files = self.hub.files(repo, revision)
        if files is None or path not in files:
            return Answer(404, b'', {'X-Error-Code': 'EntryNotFound'})
        content, status = files[path], 200
        headers = {'ETag': f'"{hashlib.sha1(content).hexdigest()}"',
                   'X-Repo-Commit': commit, 'Accept-Ranges': 'bytes',
                   'Content-Type': 'application/octet-stream'}
        match = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
        if match:
            begin, last = int(match[1]), int(match[2] or len(content) - 1)
            if begin >= len(content):
                return Answer(416)
            last = min(last, len(content) - 1)
            headers['Content-Range'] = f'bytes {begin}-{last}/{len(content)}'
            content, status = content[begin:last + 1], 206
        return Answer(status, content, headers)

    # ------------------------------------------------------------------------- writing

    def create(self, body):
        "A new repository, which is empty."
        asked = json.loads(body)
        name = f'{asked["organization"] or "who"}/{asked["name"]}'
        url = f'{self.hub.address}/{name}'
        if name in self.hub.repositories:
            return as_json(dict(error='You already created this repo', url=url), 409)
        self.hub.add(name, {}, hashlib.sha1(name.encode()).hexdigest())
        if asked.get('private') or asked.get('visibility') == 'private':
            self.hub.private.add(name)
        return as_json(dict(url=url, name=name))

    def card(self, body):
        "The head of a card, of which there is nothing to say."
        return as_json(dict(errors=[], warnings=[]))

    def preupload(self, body, repo, revision):
        "Which files are large."
        files = json.loads(body)['files']
        return as_json(dict(files=[
            dict(path=file['path'], shouldIgnore=False,
                 uploadMode='lfs' if file['path'].endswith('.safetensors') else 'regular')
            for file in files]))

    def batch(self, body, repo):
        "Where the large files go."
        objects = []
        for item in json.loads(body)['objects']:
            upload = dict(href=f'{self.hub.address}/lfs/{item["oid"]}', header={})
            verify = dict(href=f'{self.hub.address}/verify', header={})
            objects.append({**item, 'actions': dict(upload=upload, verify=verify)})
        return as_json(dict(transfer='basic', objects=objects))

    def take(self, body, sha256):
        "A large file, whose name is its hash."
        if hashlib.sha256(body).hexdigest() != sha256:
            return Answer(422, b'another hash')
        self.hub.large_files[sha256] = body
        return Answer(200)

    def verify(self, body):
        "Whether a large file came whole."
        asked = json.loads(body)
        content = self.hub.large_files.get(asked['oid'], b'')
        return Answer(200 if len(content) == asked['size'] else 422)

    def xet_token(self, body, repo, revision):
        "Where Xet takes large files, and a token for it; no answer of a hub without Xet."
        if not self.hub.xet:
            return as_json(dict(error='Not Found'), 404)
        return as_json(dict(casUrl=f'{self.hub.address}/cas', exp=2**32,
                            accessToken=self.hub.tokens[-1]))

    def take_xorb(self, body, name):
        "Chunks of large files."
        self.hub.xorbs[name] = unpack_chunks(body)
        return as_json(dict(was_inserted=True))

    def take_shard(self, body):
        "How large files are put together from chunks."
        for segments in read_shard(body):
            content = b''.join(chunk for name, start, end in segments
                               for chunk in self.hub.xorbs[name][start:end])
            self.hub.large_files[hashlib.sha256(content).hexdigest()] = content
        return as_json(dict(result=1))

    def commit(self, body, repo, revision):
        "A commit: small files within, large ones by their hashes."
        _, files = self.hub.files(repo, revision)
        if files is None:
            return as_json(dict(error='Repo not found'), 404)
        files = dict(files)
        for line in map(json.loads, body.splitlines()):
            value = line['value']
            if line['key'] == 'file':
                files[value['path']] = base64.b64decode(value['content'])
            if line['key'] == 'lfsFile':
                if value['oid'] not in self.hub.large_files:
                    return as_json(dict(error='a large file has not come'), 422)
                files[value['path']] = self.hub.large_files[value['oid']]
        commit = hashlib.sha1(body).hexdigest()
        self.hub.add(repo, files, commit)
        return as_json(dict(success=True, commitOid=commit,
                            commitUrl=f'{self.hub.address}/{repo}/commit/{commit}'))


def entry(path, content):
    "What the hub says of a file."
    return dict(type='file', path=path, size=len(content),
                oid=hashlib.sha1(content).hexdigest())


def unpack_chunks(xorb):
    "The chunks in what Xet uploads, which are packed by LZ4, or with bytes regrouped."
    import pyarrow

    chunks, at = [], 0
    while at < len(xorb):
        version, packed, kind, size = struct.unpack('<B3sB3s', xorb[at:at + 8])
        if version != 0:
            break  # what stands after the last chunk
        start = at + 8
        at = start + int.from_bytes(packed, 'little')
        chunk, size = xorb[start:at], int.from_bytes(size, 'little')
        if kind > 0:
            chunk = pyarrow.decompress(chunk, size, codec='lz4', asbytes=True)
        if kind == 2:  # first every fourth byte, then those after them, …
            groups, chunk = chunk, bytearray(size)
            for place in range(4):
                count = len(range(place, size, 4))
                chunk[place::4], groups = groups[:count], groups[count:]
        chunks.append(bytes(chunk))
    return chunks


SHARD_HEAD, SHARD_ROW = 48, 48  # bytes
SHARD_END = b'\xff' * 32  # in place of a hash


def read_shard(shard):
    "The segments of each file, in Xet's last upload: xorb, first chunk, end."
    files, at = [], SHARD_HEAD
    while shard[at:at + 32] != SHARD_END:
        flags, n_segments = struct.unpack('<32xII8x', shard[at:at + SHARD_ROW])
        segments = []
        for _ in range(n_segments):
            at += SHARD_ROW
            *words, start, end = struct.unpack('<4Q8xII', shard[at:at + SHARD_ROW])
            segments.append((''.join(f'{word:016x}' for word in words), start, end))
        files.append(segments)
        n_checks = n_segments if flags & 1 << 31 else 0
        n_sums = 1 if flags & 1 << 30 else 0
        at += (1 + n_checks + n_sums) * SHARD_ROW
    return files


class Hub(LocalServer):
    "A Hugging Face hub."
    handler = Handler

    def __init__(
        self,
        tokens=('hf_reader', 'hf_writer'),  # that this hub knows; the last one may write
        xet=False,  # does it take large files by Xet, and do its clients ask for it?
    ):
        self.tokens = tokens
        self.xet = xet
        self.xorbs = {}  # what came by Xet: name to chunks
        self.repositories = {}  # name to commit to path to content; in order, newest last
        self.private = set()  # names of repositories
        self.large_files = {}  # sha256 to content
        self.faults = {}  # a pattern in a request's path to a status, NEVER or BREAK
        self.requests = []  # 'METHOD path', and the range where there is one

    def add(self, name, files, commit='0' * 40):
        "Add a repository, or a commit to one; the last that was added is `main`."
        self.repositories.setdefault(name, {})[commit] = dict(files)

    def files(self, name, revision='main'):
        "A revision's commit and its files; None for files where there is no such thing."
        commits = self.repositories.get(name, {})
        commit = list(commits)[-1] if revision == 'main' and commits else revision
        return commit, commits.get(commit)

    def variables(self):
        "The hub's address, and a home without a token."
        return dict(HF_ENDPOINT=self.address, HF_HOME=self.folder.name,
                    HF_HUB_DISABLE_XET=str(int(not self.xet)),
                    HF_HUB_DISABLE_TELEMETRY='1')


API = f'/api/(?:models/)?{REPO}'
ROUTES = {
    'GET /api/whoami-v2': Handler.who,
    f'GET {API}': Handler.info,
    f'GET {API}/revision/{REVISION}': Handler.info,
    f'GET {API}/tree/{REVISION}(?:/(?P<folder>.+))?': Handler.tree,
    f'POST {API}/paths-info/{REVISION}': Handler.paths_info,
    f'(?:GET|HEAD) /{REPO}/resolve/{REVISION}/(?P<path>.+)': Handler.resolve,
    'POST /api/repos/create': Handler.create,
    'POST /api/validate-yaml': Handler.card,
    f'POST {API}/preupload/{REVISION}': Handler.preupload,
    rf'POST /{REPO}\.git/info/lfs/objects/batch': Handler.batch,
    'PUT /lfs/(?P<sha256>[0-9a-f]{64})': Handler.take,
    'POST /verify': Handler.verify,
    f'GET {API}/xet-write-token/{REVISION}': Handler.xet_token,
    'POST /cas/v1/xorbs/default/(?P<name>[0-9a-f]{64})': Handler.take_xorb,
    'POST /cas/v1/shards': Handler.take_shard,
    f'POST {API}/commit/{REVISION}': Handler.commit,
}
WRITING = (Handler.create, Handler.preupload, Handler.batch, Handler.xet_token,
           Handler.take_xorb, Handler.take_shard, Handler.commit)


# ---------------------------------------------------------------------- Weights & Biases

class WandbHandler(QuietHandler):
    "Answers what W&B's client asks for while a run goes on."
    hub: 'WandbServer'

    def do_POST(self):
        "Take a query, or a part of a run's files."
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        if self.headers.get('Content-Encoding') == 'gzip':
            body = gzip.decompress(body)
        answer = {}
        if self.path == '/graphql':
            answer = dict(data=self.query(json.loads(body)))
        elif self.path.endswith('/file_stream'):
            self.hub.take(json.loads(body))
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_POST  # the run's other files, of which nothing is kept

    def query(self, asked):
        "Answer a query of GraphQL, by its name."
        name = re.search(r'(?:query|mutation)\s+(\w+)', asked['query'])[1]
        variables = asked.get('variables') or {}
        if name == 'Viewer':
            viewer = dict(id='u', entity='who', username='who', flags='{}',
                          teams=dict(edges=[]))
            return dict(viewer=viewer)
        if name == 'UpsertBucket':
            return dict(upsertBucket=dict(bucket=self.bucket(variables), inserted=True))
        if name == 'CreateRunFiles':
            files = [dict(name=file, uploadUrl=f'{self.hub.address}/file')
                     for file in variables['files']]
            return dict(createRunFiles=dict(runID='run', uploadHeaders=[], files=files))
        return {}

    def bucket(self, variables):
        "A run, which W&B calls a bucket."
        if variables.get('displayName'):
            self.hub.name = variables['displayName']
            self.hub.config = json.loads(variables['config'])
        project = dict(id='p', name=variables['project'], entity=dict(id='e', name='who'))
        return dict(id='run', name=variables['name'], displayName=self.hub.name,
                    config='{}', project=project, historyLineCount=0)


class WandbServer(LocalServer):
    "A W&B that takes one run."
    handler = WandbHandler

    def __init__(self):
        self.name = None  # of the run
        self.config = {}  # of the run
        self.history = {}  # number of a line to what was logged
        self.exit_code = None  # that the run told at its end

    def take(self, part):
        "Take a part of the run's history."
        lines = part.get('files', {}).get('wandb-history.jsonl')
        if lines:
            for i, line in enumerate(lines['content'], lines['offset']):
                self.history[i] = json.loads(line)
        if part.get('complete'):
            self.exit_code = part['exitcode']

    def variables(self):
        "The server's address, and a key."
        return dict(WANDB_BASE_URL=self.address, WANDB_MODE='online',
                    WANDB_API_KEY='0' * 40, HOME=self.folder.name)
