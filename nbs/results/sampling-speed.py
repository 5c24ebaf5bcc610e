"""How fast stories are told, beside other programs. Writes `sampling-speed.json`.

    python nbs/results/sampling-speed.py [--rounds 3] [--llama2c FOLDER]
                                         [--checkpoint RUN --data PATH]
                                         [--batches 1] [--busy 1] [--out FILE]

The card's model with random weights, 200 greedy tokens after a prompt of 20, for one story
and batches of 8 and 64. Each row is a process of its own; rows take turns in rounds.
`transformers` and llama.cpp (through `pip install xllamacpp gguf`) are left out where they
are not installed. `--llama2c` names a folder with `run` and `runq`, built from
github.com/karpathy/llama2.c with `gcc -O3 -ffast-math -fopenmp -march=native`. With
`--checkpoint` and `--data` the loss with weights of eight bits is measured, too. `--busy`
has other processes at work meanwhile, each on as much of a core as it can get. The numbers
of another machine go to a file of their own, by `--out`.
"""
import argparse
import contextlib
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from _processor import processor

HERE = Path(__file__).resolve().parent
PROMPT, NEW = 20, 200  # tokens
ONE_STORY = 'piny, one thread', 'llama2.c'  # no batches
KINDS = {'piny': ('float32', 'int8'), 'piny, one thread': ('float32', 'int8'),
         'transformers': ('float32',), 'llama2.c': ('float32', 'int8'),
         'llama.cpp': ('float32', 'int8')}


class Job(NamedTuple):
    "A row of the table."
    peer: str
    kind: str  # of the weights
    batch: int  # stories side by side


def card():
    "The card's model."
    import torch

    from piny.model import ModelConfig, Piny

    torch.manual_seed(0)
    return Piny(ModelConfig()).eval()


def prompt(i):
    "Token ids of the i-th story's beginning; no two begin alike."
    return [1, *range(10 + i, 9 + i + PROMPT)]


def rate(work, action):
    "Work a second, the median of seven; one time before does not count."
    action()
    rates = []
    for _ in range(7):
        start = time.perf_counter()
        action()
        rates.append(work / (time.perf_counter() - start))
    return statistics.median(rates)


def readers():
    "Ways to read a large buffer with all cores: name to bytes and action."
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    import torch

    from piny.step import multiply

    buffer, row = np.ones((2**16, 2**11), np.float32), np.ones(2**16, np.float32)
    cores = os.cpu_count()
    parts, pool = np.array_split(buffer, cores), ThreadPoolExecutor(cores)
    y, tensor = row.copy(), torch.from_numpy(buffer)

    def four_places():
        multiply(buffer, row, row[:2**11], 1.0, y, np.float32(0), cores)

    return {"the step's product": (buffer.nbytes, four_places),
            "numpy's sum": (buffer.nbytes, lambda: list(pool.map(np.sum, parts))),
            "torch's sum": (buffer.nbytes, tensor.sum)}


def limits():
    "Bytes a second of each reader, and operations a second of a float32 product."
    import torch
    a = torch.randn(2048, 2048)
    read = {name: rate(size, action) for name, (size, action) in readers().items()}
    return dict(read=read, operations_per_second=rate(2 * 2048**3, lambda: a @ a))


def timed(run, batch):
    "Tokens a second, prompt included in the time; a short run before does not count."
    run(8)
    start = time.perf_counter()
    run(NEW)
    return batch * NEW / (time.perf_counter() - start)


def piny(kind, batch, folder):
    "Tokens a second of this project's own loop."
    from piny.decoder import Decoder
    from piny.generation import Sequence, generate_steps
    from piny.next_token import SamplingParams

    class Words:
        "A tokenizer that ends nothing."
        bos_id, eos_id, vocab_size = 1, -1, 16384

        @staticmethod
        def decode(ids):
            return ''

    decoder = Decoder(card(), int8=kind == 'int8')

    def run(new):
        params = SamplingParams(temperature=0, repetition_penalty=1,
                                max_new_tokens=new)
        sequences = [Sequence(ids=prompt(i), params=params, n_prompt=PROMPT)
                     for i in range(batch)]
        for _ in generate_steps(decoder, Words, sequences, alternatives=None):
            pass

    return timed(run, batch)


def piny_alone(kind, batch, folder):
    "The same with one thread."
    import torch
    torch.set_num_threads(1)
    return piny(kind, batch, folder)


def transformers(kind, batch, folder):
    "Tokens a second of `generate` of transformers."
    import torch
    from transformers import LlamaForCausalLM

    llama = LlamaForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([prompt(i) for i in range(batch)])
    mask = torch.ones_like(ids)

    def run(new):
        llama.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=new,
                       min_new_tokens=new, pad_token_id=2)

    return timed(run, batch)


def llama2c(kind, batch, folder):
    """Tokens a second from what `run` or `runq` state. They read a prompt token by token,
    as slowly as they tell; so its share of the time is taken off."""
    name, file = ('runq', 'q80.bin') if kind == 'int8' else ('run', 'float.bin')
    command = [f'{os.environ["LLAMA2C"]}/{name}', f'{folder}/{file}', '-t', '0',
               '-n', str(PROMPT + NEW), '-z', f'{folder}/tokens.bin', '-i', '']
    env = {**os.environ, 'OMP_NUM_THREADS': str(os.cpu_count())}
    done = subprocess.run(command, capture_output=True, timeout=300, env=env)
    steps_per_second = float(done.stderr.decode().rpartition('achieved tok/s:')[2])
    return steps_per_second * NEW / (PROMPT + NEW)


def llamacpp(kind, batch, folder):
    "Tokens a second of llama.cpp's server, asked by as many threads as there are stories."
    import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path = f'{folder}/{kind}.gguf'
    params.n_ctx = 512 * batch
    params.n_parallel = batch
    params.warmup = True
    params.cpuparams.n_threads = os.cpu_count()
    params.cpuparams_batch.n_threads = os.cpu_count()
    server = xllamacpp.Server(params)
    counts = []  # of the tokens that came

    def ask(i, new):
        answer = server.handle_completions(dict(
            prompt=prompt(i), n_predict=new, temperature=0, ignore_eos=True,
            cache_prompt=False))
        counts.append(answer['timings']['predicted_n'])

    def run(new):
        threads = [threading.Thread(target=ask, args=(i, new)) for i in range(batch)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    speed = timed(run, batch)
    n_tokens = sum(counts[-batch:])
    if n_tokens != batch * NEW:
        raise ValueError(f'{n_tokens} tokens came, and {batch * NEW} were asked for')
    return speed


PEERS = {'piny': piny, 'piny, one thread': piny_alone, 'transformers': transformers,
         'llama2.c': llama2c, 'llama.cpp': llamacpp}


# ---- the model as the other programs want it

def raw(tensors):
    "Float32 tensors, one behind the other."
    return b''.join(tensor.float().numpy().tobytes() for tensor in tensors)


def rounded(tensor, group=64):
    "A tensor in eight bits, with a scale for each group, as llama2.c has it."
    import torch
    grouped = tensor.float().view(-1, group)
    scale = grouped.abs().amax(1, keepdim=True) / 127
    ids = (grouped / scale).round().to(torch.int8)
    return ids.numpy().tobytes() + scale.numpy().tobytes()


def write_llama2c(model, folder):
    "The model in the two formats of llama2.c, and a vocabulary of words that mean nothing."
    c = model.config
    shape = struct.pack('<7i', c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads,
                        c.vocab_size, c.context)

    def each(path):
        return [layer.get_parameter(f'{path}.weight').detach() for layer in model.layers]

    embedding, last_norm = model.embed_tokens.weight.detach(), model.norm.weight.detach()
    norms = [each('input_layernorm'), each('post_attention_layernorm'), [last_norm]]
    attention = [each(f'self_attn.{name}_proj') for name in 'qkvo']
    feed_forward = [each(f'mlp.{name}_proj') for name in ('gate', 'down', 'up')]

    groups = [[embedding], norms[0], *attention, norms[1], *feed_forward, norms[2]]
    tables = bytes(4 * c.context * c.head_size)  # of RoPE, which llama2.c does not read
    Path(folder, 'float.bin').write_bytes(shape + b''.join(map(raw, groups)) + tables)

    head = struct.pack('<Ii', 0x616b3432, 2) + shape + struct.pack('<Bi', 1, 64)
    matrices = [embedding]
    for group in attention + feed_forward:
        matrices += group
    content = b''.join(map(raw, norms)) + b''.join(map(rounded, matrices))
    Path(folder, 'q80.bin').write_bytes(head.ljust(256, b'\0') + content)

    words = [f'w{i}'.encode() for i in range(c.vocab_size)]
    entries = [struct.pack('<fi', 0.0, len(word)) + word for word in words]
    Path(folder, 'tokens.bin').write_bytes(struct.pack('<I', 8) + b''.join(entries))


def gguf_word(i):
    "The text of a token, in a vocabulary that means nothing."
    if i > 258:
        return f'w{i}'
    return f'<0x{i - 3:02X}>' if i > 2 else ('<unk>', '<s>', '</s>')[i]


def write_gguf(model, folder):
    "The model as GGUF, in float32 and Q8_0, with a vocabulary that means nothing."
    import gguf

    from piny.gguf_file import add_shape, add_tensor, gguf_tensors
    n = model.config.vocab_size
    for kind, gguf_type in ('float32', 'f32'), ('int8', 'q8_0'):
        writer = gguf.GGUFWriter(f'{folder}/{kind}.gguf', 'llama')
        add_shape(writer, model.config)
        writer.add_tokenizer_model('llama')
        writer.add_token_list([gguf_word(i) for i in range(n)])
        writer.add_token_scores([0.0] * n)
        writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (n - 259))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        for name, numbers in gguf_tensors(model):
            add_tensor(writer, name, numbers, gguf_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


# ---- all rows

def quality(checkpoint, data, n_stories=200):
    "Bits per byte of the first stories, in float32 and with eight bits."
    from itertools import islice

    from piny.dataset import read_stories
    from piny.decoder import Decoder
    from piny.evaluation import evaluate
    from piny.pretrained import load_checkpoint

    model, tokenizer = load_checkpoint(checkpoint)
    stories = list(islice(read_stories(data, 'validation'), n_stories))
    float32 = evaluate(model, tokenizer, stories, progress=True)
    int8 = evaluate(Decoder(model, int8=True), tokenizer, stories, progress=True)
    return dict(float32=float32, int8=int8, parameters=model.num_parameters())


def worker(peer, kind, batch, folder):
    "One row, in its own process."
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what libraries print shall not mix with the answer
    speed = PEERS[peer](kind, int(batch), folder)
    answers.write(json.dumps(dict(speed=speed, **limits())))
    answers.flush()
    os._exit(0)


def ask(job, folder, llama2c_folder):
    "What a worker measured; `None` where it has failed."
    command = [sys.executable, __file__, '--worker', job.peer, job.kind, str(job.batch),
               folder]
    env = {**os.environ, 'LLAMA2C': os.path.abspath(llama2c_folder or ''),
           'PYTHONWARNINGS': 'ignore'}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=env)
    if done.returncode == 0 and done.stdout:
        return json.loads(done.stdout)
    print(f'{job} failed: {done.stderr[-300:]}', file=sys.stderr)
    return None


def measure(jobs, rounds, folder, llama2c_folder):
    "All rows, in turns; a row to what it measured in each round."
    answers = {job: [] for job in jobs}
    start, n_asked = time.perf_counter(), 0
    for i in range(rounds):
        for job in jobs:
            answer = ask(job, folder, llama2c_folder)
            n_asked += 1
            if answer is None:
                continue
            answers[job].append(answer)
            seconds = (time.perf_counter() - start) / n_asked
            print(f'round {i + 1} of {rounds}: {job.peer} {job.kind} {job.batch}: '
                  f'{answer["speed"]:,.0f} tokens/s '
                  f'(about {seconds * (rounds * len(jobs) - n_asked):.0f} s left)',
                  file=sys.stderr)
    return answers


@contextlib.contextmanager
def busy_processes(n):
    "Processes that multiply matrices meanwhile, with one thread each."
    work = 'import numpy; a = numpy.ones((512, 512))\nwhile True: a @ a'
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'}
    processes = [subprocess.Popen([sys.executable, '-c', work], env=environment)
                 for _ in range(n)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def compare(options, available):
    "All rows, and the limits of this machine."
    import torch
    jobs = []
    for batch in options.batches:
        for peer, kinds in KINDS.items():
            if available[peer] and (batch == 1 or peer not in ONE_STORY):
                jobs += [Job(peer, kind, batch) for kind in kinds]
    with tempfile.TemporaryDirectory() as folder:
        model = card()
        model.save_pretrained(folder)
        if available['llama2.c']:
            write_llama2c(model, folder)
        if available['llama.cpp']:
            write_gguf(model, folder)
        with busy_processes(options.busy):
            answers = measure(jobs, options.rounds, folder, options.llama2c)
    rows = []
    for job, measured in answers.items():
        speeds = [answer['speed'] for answer in measured]
        if speeds:
            rows.append(dict(**job._asdict(), tokens_per_second=statistics.median(speeds),
                             least=min(speeds), most=max(speeds)))
    result = dict(torch=torch.__version__, python=platform.python_version(),
                  processor=processor(), cores=os.cpu_count(), rounds=options.rounds,
                  busy=options.busy, parameters=model.num_parameters())
    limits = [answer for measured in answers.values() for answer in measured]
    result['operations_per_second'] = statistics.median(
        answer['operations_per_second'] for answer in limits)
    result['read'] = {name: statistics.median(answer['read'][name] for answer in limits)
                      for name in limits[0]['read']}
    result['bytes_per_second'] = max(result['read'].values())
    return dict(result, rows=rows)


def print_result(result):
    "The rows and the limits, for people."
    for row in result['rows']:
        print(f'{row["batch"]:3} {row["peer"]:14} {row["kind"]:8} '
              f'{row["tokens_per_second"]:8,.0f} tokens/s '
              f'({row["least"]:,.0f} to {row["most"]:,.0f})')
    memory = result['bytes_per_second'] / result['parameters']
    product = result['operations_per_second'] / result['parameters'] / 2
    if result.get('read'):
        print(', '.join(f'{name}: {speed / 1e9:.1f} GB/s'
                        for name, speed in result['read'].items()))
    print(f'memory limit of one story: {memory / 4:,.0f} in float32, '
          f'{memory:,.0f} in int8; matmul ceiling: {product:,.0f} tokens/s')


def main():
    from importlib.util import find_spec

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=3,
                        help='0: keep the speeds that are there (default: 3)')
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 8, 64])
    parser.add_argument('--llama2c', help='a folder with run and runq')
    parser.add_argument('--busy', type=int, default=0, help='so many other processes (0)')
    parser.add_argument('--out', default='sampling-speed.json', help='file, beside this')
    parser.add_argument('--checkpoint',
                        help='a trained run, to measure what eight bits cost')
    parser.add_argument('--data', help='text whose validation split to score it on')
    parser.add_argument('--worker', nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker)
    if bool(options.checkpoint) != bool(options.data):
        parser.error('give --checkpoint and --data, or neither')
    available = {'piny': True, 'piny, one thread': True,
                 'transformers': find_spec('transformers'),
                 'llama2.c': options.llama2c,
                 'llama.cpp': find_spec('xllamacpp') and find_spec('gguf')}

    path = HERE/options.out
    result = json.loads(path.read_text()) if path.is_file() else {}
    if options.rounds:
        result.update(compare(options, available))
    if options.checkpoint:
        result['quality'] = quality(options.checkpoint, options.data)
    path.write_text(json.dumps(result, indent=1) + '\n')
    print_result(result)


if __name__ == '__main__':
    main()
