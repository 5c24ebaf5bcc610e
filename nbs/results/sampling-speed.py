"""How fast stories are told, beside other programs. Writes `sampling-speed.json` beside itself.

    python nbs/results/sampling-speed.py [--rounds 3] [--llama2c FOLDER] [--checkpoint RUN --data PATH]

The card's model with random weights, 200 greedy tokens after a prompt of 20, for one story and batches of 8 and 64. Each row is a process of its own; rows take turns in rounds.
`transformers` and llama.cpp (through `pip install xllamacpp gguf`) are left out where they are not installed.
`--llama2c` names a folder with `run` and `runq`, built from github.com/karpathy/llama2.c with `gcc -O3 -ffast-math -fopenmp -march=native`.
With `--checkpoint` and `--data` the loss with weights of eight bits is measured, too.
"""
import argparse, json, os, platform, statistics, struct, subprocess, sys, tempfile, threading, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROMPT, NEW = 20, 200
PEERS = {'piny': ('float32', 'int8'), 'transformers': ('float32',), 'llama2.c': ('float32', 'int8'), 'llama.cpp': ('float32', 'int8')}


def card():
    "The card's model."
    import torch
    from piny.model import ModelConfig, Piny
    torch.manual_seed(0)
    return Piny(ModelConfig()).eval()


def limits():
    "Bytes a second that all cores read of a large buffer, and operations a second of a large float32 product."
    import numpy as np, torch
    from piny.step import multiply
    buffer, row, a = np.ones((2**16, 2**11), np.float32), np.ones(2**16, np.float32), torch.randn(2048, 2048)
    def best(work, action):
        action()
        found = []
        for _ in range(7):
            start = time.perf_counter()
            action()
            found.append(work / (time.perf_counter() - start))
        return statistics.median(found)
    read = lambda: multiply(buffer, row, row[:2**11], 1.0, row.copy(), np.float32(0), os.cpu_count())     # at four places a core, which is faster than torch's sum
    return dict(bytes_per_second=best(buffer.nbytes, read), operations_per_second=best(2 * 2048**3, lambda: a @ a))


def piny(kind, batch, folder):
    "Tokens a second of this project's `generate`; equal prompts are told apart by their first tokens."
    import torch
    from piny.decoder import Decoder
    from piny.sampling import Dials, Story, tell
    class Words:                                                      # a tokenizer that ends nothing
        bos_id, eos_id, decode = 1, -1, staticmethod(lambda ids: '')
    decoder = Decoder(card(), int8=kind == 'int8')
    decoder.one.ready.wait()
    def run(new):
        told = [Story([1, *range(10 + i, 9 + i + PROMPT)], Dials(temperature=0, max_new_tokens=new), PROMPT) for i in range(batch)]
        for _ in tell(decoder, Words, told, alternatives=None): pass
    return timed(run, batch)


def transformers(kind, batch, folder):
    "Tokens a second of `generate` of transformers."
    import torch
    from transformers import LlamaForCausalLM
    llama = LlamaForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([[1, *range(10 + i, 9 + i + PROMPT)] for i in range(batch)])
    return timed(lambda new: llama.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=2), batch)


def timed(run, batch):
    "Tokens a second, prompt included in the time; a short run before does not count."
    run(8)
    start = time.perf_counter()
    run(NEW)
    return batch * NEW / (time.perf_counter() - start)


def llama2c(kind, batch, folder):
    "Tokens a second as `run` or `runq` state them."
    if batch > 1: return None
    name, file = ('runq', 'q80.bin') if kind == 'int8' else ('run', 'float.bin')
    said = subprocess.run([f'{os.environ["LLAMA2C"]}/{name}', f'{folder}/{file}', '-t', '0', '-n', str(NEW), '-z', f'{folder}/tokens.bin', '-i', ''],
                          capture_output=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': str(os.cpu_count())}).stderr.decode()
    return float(said.rpartition('achieved tok/s:')[2])


def llamacpp(kind, batch, folder):
    "Tokens a second of llama.cpp's server, asked by as many threads as there are stories."
    import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = f'{folder}/{kind}.gguf', 512 * batch, batch, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
    server, found = xllamacpp.Server(params), []
    def ask(i, new):
        answer = server.handle_completions(dict(prompt=[1, *range(10 + i, 9 + i + PROMPT)], n_predict=new, temperature=0, ignore_eos=True, cache_prompt=False))
        found.append(answer['timings']['predicted_n'])
    def run(new):
        threads = [threading.Thread(target=ask, args=(i, new)) for i in range(batch)]
        for t in threads: t.start()
        for t in threads: t.join()
    speed = timed(run, batch)
    if sum(found[-batch:]) != batch * NEW: raise ValueError(f'{sum(found[-batch:])} tokens came, and {batch * NEW} were asked for')
    return speed


def write_llama2c(model, folder):
    "The model in the two formats of llama2.c, and a vocabulary of words that mean nothing."
    import torch
    c, layers = model.config, model.layers
    shape = struct.pack('<7i', c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.vocab_size, c.context)
    def each(path): return [layer.get_parameter(path + '.weight').detach() for layer in layers]
    norms = each('input_layernorm'), each('post_attention_layernorm'), [model.norm.weight.detach()]
    attention = [each(f'self_attn.{n}_proj') for n in 'qkvo']
    feed = [each(f'mlp.{n}_proj') for n in ('gate', 'down', 'up')]
    def raw(tensors): return b''.join(t.float().numpy().tobytes() for t in tensors)
    Path(folder, 'float.bin').write_bytes(shape + raw([model.embed_tokens.weight.detach()]) + raw(norms[0]) + b''.join(map(raw, attention)) + raw(norms[1])
                                          + b''.join(map(raw, feed)) + raw(norms[2]) + bytes(4 * c.context * c.head_size))
    def rounded(tensor, group=64):
        grouped = tensor.float().view(-1, group)
        scale = grouped.abs().amax(1, keepdim=True) / 127
        return (grouped / scale).round().to(torch.int8).numpy().tobytes() + scale.numpy().tobytes()
    head = struct.pack('<Ii', 0x616b3432, 2) + shape + struct.pack('<Bi', 1, 64)
    Path(folder, 'q80.bin').write_bytes(head.ljust(256, b'\0') + b''.join(map(raw, norms)) + rounded(model.embed_tokens.weight.detach())
                                        + b''.join(rounded(t) for kind in [*attention, *feed] for t in kind))
    words = [f'w{i}'.encode() for i in range(c.vocab_size)]
    Path(folder, 'tokens.bin').write_bytes(struct.pack('<I', 8) + b''.join(struct.pack('<fi', 0.0, len(w)) + w for w in words))


def write_gguf(model, folder):
    "The model as GGUF, in float32 and Q8_0."
    import gguf, numpy
    from gguf import GGMLQuantizationType as Kind
    c = model.config
    names = dict(input_layernorm='attn_norm', post_attention_layernorm='ffn_norm', **{f'self_attn.{a}_proj': f'attn_{b}' for a, b in zip('qkvo', ('q', 'k', 'v', 'output'))},
                 **{f'mlp.{n}_proj': f'ffn_{n}' for n in ('gate', 'up', 'down')})
    tensors = {'token_embd.weight': model.embed_tokens.weight, 'output_norm.weight': model.norm.weight,
               **{f'blk.{i}.{theirs}.weight': layer.get_parameter(ours + '.weight') for i, layer in enumerate(model.layers) for ours, theirs in names.items()}}
    for kind in 'float32', 'int8':
        w = gguf.GGUFWriter(f'{folder}/{kind}.gguf', 'llama')
        w.add_context_length(c.context); w.add_embedding_length(c.dim); w.add_block_count(c.n_layers); w.add_feed_forward_length(c.hidden_dim)
        w.add_head_count(c.n_heads); w.add_head_count_kv(c.n_kv_heads); w.add_layer_norm_rms_eps(c.norm_eps); w.add_rope_dimension_count(c.head_size); w.add_vocab_size(c.vocab_size)
        w.add_tokenizer_model('llama'); w.add_token_list([f'w{i}' if i > 258 else f'<0x{i - 3:02X}>' if i > 2 else ('<unk>', '<s>', '</s>')[i] for i in range(c.vocab_size)])
        w.add_token_scores([0.0] * c.vocab_size); w.add_token_types([2, 3, 3] + [6] * 256 + [1] * (c.vocab_size - 259))
        w.add_bos_token_id(1); w.add_eos_token_id(2)
        for name, tensor in tensors.items():
            data = tensor.detach().float().numpy()
            if kind == 'int8' and data.ndim == 2: w.add_tensor(name, gguf.quants.quantize(data, Kind.Q8_0), raw_dtype=Kind.Q8_0)
            else: w.add_tensor(name, numpy.ascontiguousarray(data))
        w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()


def quality(checkpoint, data, stories=200):
    "Bits per byte of the first stories, in float32 and with eight bits."
    from itertools import islice
    from piny.dataset import read_stories
    from piny.decoder import Decoder
    from piny.evaluation import evaluate
    from piny.model import load_checkpoint
    model, tokenizer = load_checkpoint(checkpoint)
    text = list(islice(read_stories(data, 'validation'), stories))
    float32, int8 = (evaluate(m, tokenizer, text, progress=True) for m in (model, Decoder(model, int8=True)))
    return dict(float32=float32, int8=int8, parameters=model.num_parameters())


def compare(options, there):
    "All rows, in turns."
    import torch
    with tempfile.TemporaryDirectory() as folder:
        model = card()
        model.save_pretrained(folder)
        if there['llama2.c']: write_llama2c(model, folder)
        if there['llama.cpp']: write_gguf(model, folder)
        jobs = [(peer, kind, batch) for batch in options.batches for peer, kinds in PEERS.items() for kind in kinds if there[peer] and (batch == 1 or peer != 'llama2.c')]
        seen, began = {job: [] for job in jobs}, time.perf_counter()
        for i in range(options.rounds):
            for n, job in enumerate(jobs):
                done = subprocess.run([sys.executable, __file__, '--worker', job[0], job[1], str(job[2]), folder], capture_output=True, text=True, timeout=900,
                                      env={**os.environ, 'LLAMA2C': os.path.abspath(options.llama2c or ''), 'PYTHONWARNINGS': 'ignore'})
                if done.returncode == 0 and done.stdout: seen[job].append(json.loads(done.stdout))
                spent, part = time.perf_counter() - began, i + (n + 1) / len(jobs)
                print(f'round {i + 1} of {options.rounds}: {" ".join(map(str, job))}: {seen[job][-1]["speed"]:,.0f} tokens/s' if seen[job] else f'{job} failed: {done.stderr[-300:]}',
                      f'(about {spent / part * (options.rounds - part):.0f} s left)', file=sys.stderr)
        rows = []
        for (peer, kind, batch), all_of_it in seen.items():
            if not all_of_it: continue
            speeds = [f['speed'] for f in all_of_it]
            rows.append(dict(peer=peer, kind=kind, batch=batch, tokens_per_second=statistics.median(speeds), least=min(speeds), most=max(speeds)))
        every = [f for all_of_it in seen.values() for f in all_of_it]
        return dict(torch=torch.__version__, python=platform.python_version(), cores=os.cpu_count(), rounds=options.rounds, parameters=model.num_parameters(),
                    bytes_per_second=statistics.median(f['bytes_per_second'] for f in every), operations_per_second=statistics.median(f['operations_per_second'] for f in every), rows=rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=3, help='0: keep the speeds that are there (default: 3)')
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 8, 64])
    parser.add_argument('--llama2c', help='a folder with run and runq')
    parser.add_argument('--checkpoint', help='a trained run, to measure what eight bits cost')
    parser.add_argument('--data', help='text whose validation split to score it on')
    parser.add_argument('--worker', nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        peer, kind, batch, folder = options.worker
        answers = os.fdopen(os.dup(1), 'w')
        os.dup2(2, 1)                                                 # what libraries print shall not mix with the answer
        speed = {'piny': piny, 'transformers': transformers, 'llama2.c': llama2c, 'llama.cpp': llamacpp}[peer](kind, int(batch), folder)
        answers.write(json.dumps(dict(speed=speed, **limits())))
        answers.flush()
        os._exit(0)
    if bool(options.checkpoint) != bool(options.data): parser.error('give --checkpoint and --data, or neither')
    from importlib.util import find_spec
    there = {'piny': True, 'transformers': find_spec('transformers'), 'llama2.c': options.llama2c, 'llama.cpp': find_spec('xllamacpp') and find_spec('gguf')}
    path = HERE/'sampling-speed.json'
    found = json.loads(path.read_text()) if path.is_file() else {}
    if options.rounds: found.update(compare(options, there))
    if options.checkpoint: found['quality'] = quality(options.checkpoint, options.data)
    path.write_text(json.dumps(found, indent=1) + '\n')
    for r in found['rows']: print(f'{r["batch"]:3} {r["peer"]:14} {r["kind"]:8} {r["tokens_per_second"]:8,.0f} tokens/s ({r["least"]:,.0f} to {r["most"]:,.0f})')
    print(f'memory limit of one story: {found["bytes_per_second"] / found["parameters"] / 4:,.0f} in float32, {found["bytes_per_second"] / found["parameters"]:,.0f} in int8; '
          f'matmul ceiling: {found["operations_per_second"] / found["parameters"] / 2:,.0f} tokens/s')


if __name__ == '__main__': main()
