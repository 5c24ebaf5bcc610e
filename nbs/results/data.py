"""How fast data is prepared and read; writes data.json beside itself.

    PINY_STORIES=FOLDER python nbs/results/data.py [--megabytes 20 200 2000]

It takes about half an hour on two cores, and 10 GB of disk.

All rates are of UTF-8 text, and every ratio is of two numbers of one run. `prepare` and
`datasets` are timed from the start of the process to its end; raw SentencePiece is the
encoding alone, of text that is in memory, with as many threads as there are cores.
"""
import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from piny import storybook
from piny.batches import get_batch, prefetch, window_starts
from piny.dataset import prepare
from piny.readers import SEPARATOR
from piny.shards import TokenShards
from piny.sources import raw_stories
from piny.tokenizer import Tokenizer

CORES = len(os.sched_getaffinity(0))
PEER = """
import sys, datasets, tokenizers
datasets.disable_progress_bars()
text, file, cache, processes = sys.argv[1:]
tokenizer = tokenizers.Tokenizer.from_file(file)
rows = datasets.load_dataset('json', data_files=text, split='train', cache_dir=cache)
def encode(batch):
    return dict(ids=[e.ids for e in tokenizer.encode_batch(batch['text'])])
rows.map(encode, batched=True, num_proc=int(processes), remove_columns=['text'])
"""


class Watched(NamedTuple):
    "What a command took."
    seconds: float
    rss: float  # MB: the most memory that its processes held together, as resident set
    pss: float  # MB: the same, as proportional set


def watch(command):
    "Run a command, and look at its memory four times a second."
    start = time.perf_counter()
    rss = pss = 0
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere)
    while process.poll() is None:
        fields = [memory_fields(pid) for pid in family(process.pid)]
        rss = max(rss, sum(f.get('Rss', 0) for f in fields))
        pss = max(pss, sum(f.get('Pss', 0) for f in fields))
        time.sleep(0.25)
    if process.returncode:
        raise SystemExit(f'{command} ended with {process.returncode}')
    return Watched(time.perf_counter() - start, rss, pss)


def memory_fields(pid):
    "Resident and proportional set of a process, MB; empty where it is gone."
    try:
        lines = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()[1:]
    except OSError:
        return {}
    fields = dict(line.split(':') for line in lines)
    return {name: int(fields[name].split()[0]) / 1000
            for name in ('Rss', 'Pss') if name in fields}


def family(pid):
    "A process and all that came from it."
    children = {}
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            parent = int(stat.read_text().rpartition(')')[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    pids = [pid]
    for member in pids:  # grows while we go through it
        pids += children.get(member, [])
    return pids


def raw_encoding(stories, tokenizer, limit):
    "MB/s of SentencePiece alone, on at most so many bytes."
    seconds = n_bytes = 0
    while n_bytes < limit:
        texts = [story.encode() for story in itertools.islice(stories, 4096)]
        if not texts:
            break
        start = time.perf_counter()
        tokenizer.processor.encode(texts, add_bos=True, add_eos=True, num_threads=CORES)
        seconds += time.perf_counter() - start
        n_bytes += sum(map(len, texts))
    return n_bytes / seconds / 1e6


def peer_tokenizer(stories, path, size):
    "A byte-level BPE of the `tokenizers` library."
    import tokenizers
    model = tokenizers.ByteLevelBPETokenizer()
    model.train_from_iterator(stories, vocab_size=size, show_progress=False)
    model.save(str(path))


def write_text(folder, megabytes):
    "Storybook text of a size, as a text file, and as JSON lines; bytes and stories."
    n_bytes = n_stories = 0
    (folder/'data').mkdir()
    text_path, rows_path = folder/'data'/'train.txt', folder/'rows.json'
    with open(text_path, 'w') as text, open(rows_path, 'w') as rows:
        for story in storybook.stories(10**9 // 100):
            text.write(story + SEPARATOR)
            rows.write(json.dumps(dict(text=story)) + '\n')
            n_bytes += len(story)
            n_stories += 1
            if n_bytes >= megabytes * 1e6:
                break
    validation = SEPARATOR.join(storybook.stories(200, split='validation'))
    (folder/'data'/'valid.txt').write_text(validation)
    return n_bytes, n_stories


def measure(megabytes, tokenizer_folder, peer_file, repeats):
    "A row of the table: text of a size, prepared by us and by `datasets`."
    tokenizer = Tokenizer.from_pretrained(tokenizer_folder)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        n_bytes, n_stories = write_text(folder, megabytes)
        raw, ours, theirs = [], [], []
        for i in range(repeats):
            raw.append(raw_encoding(raw_stories(folder/'data'), tokenizer, 200e6))
            ours.append(watch([
                sys.executable, '-m', 'piny.dataset', 'prepare', str(folder/'data'),
                '--out', str(folder/f'out{i}'), '--tokenizer', str(tokenizer_folder)]))
            theirs.append(watch([
                sys.executable, '-c', PEER, str(folder/'rows.json'), str(peer_file),
                str(folder/f'cache{i}'), str(CORES)]))
            subprocess.run(['rm', '-rf', str(folder/f'cache{i}')])
            print(f'{megabytes} MB, run {i + 1} of {repeats}: raw {raw[-1]:.1f} MB/s, '
                  f'prepare {n_bytes / ours[-1].seconds / 1e6:.1f}, '
                  f'datasets {n_bytes / theirs[-1].seconds / 1e6:.1f}', flush=True)
        speed = reading(folder/'out0')
    ours, theirs = median(ours), median(theirs)
    return dict(
        megabytes=n_bytes / 1e6, stories=n_stories, repeats=repeats,
        raw=statistics.median(raw), prepare=n_bytes / ours.seconds / 1e6,
        datasets=n_bytes / theirs.seconds / 1e6, prepare_rss=ours.rss, prepare_pss=ours.pss,
        datasets_rss=theirs.rss, datasets_pss=theirs.pss, reading=speed)


def median(runs):
    "The median of each number of several runs."
    return Watched(*(statistics.median(numbers) for numbers in zip(*runs)))


def reading(folder, seconds=5):
    "Tokens per second of training batches, 32 windows of 512."
    tokens = TokenShards(folder, 'train')
    starts = window_starts(tokens, 512)

    def batches():
        for first in itertools.count(step=32):
            yield get_batch(tokens, starts, range(first, first + 32), 512, 0)

    rates = {}
    for name, source in ('plain', batches()), ('prefetched', prefetch(batches())):
        n_tokens, start = 0, time.perf_counter()
        for ids, _ in source:
            n_tokens += ids.numel()
            if time.perf_counter() - start > seconds:
                break
        rates[name] = n_tokens / (time.perf_counter() - start)
    return rates


def real_sample(source, vocab_size, repeats):
    "The real sample in a warm process: all rules on, against raw SentencePiece."
    stories = list(raw_stories(source))
    tokenizer = Tokenizer.train(stories, vocab_size)
    n_bytes = sum(len(story.encode()) for story in stories)
    raw, ours = [], []
    for _ in range(repeats):
        raw.append(raw_encoding(iter(stories), tokenizer, 1e12))
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            prepare(source, tokenizer=tokenizer, out=Path(folder)/'out')
            ours.append(n_bytes / (time.perf_counter() - start) / 1e6)
    return dict(megabytes=n_bytes / 1e6, repeats=repeats, raw=statistics.median(raw),
                prepare=statistics.median(ours))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--megabytes', type=int, nargs='+', default=[20, 200, 2000])
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, peer = Path(folder)/'tokenizer', Path(folder)/'peer.json'
        stories = list(storybook.stories(20_000))
        Tokenizer.train(stories, 4096).save_pretrained(tokenizer)
        peer_tokenizer(stories, peer, 4096)
        for size in options.megabytes:
            rows.append(measure(size, tokenizer, peer, 3 if size < 1000 else 1))
    real = None
    if 'PINY_STORIES' in os.environ:
        real = real_sample(os.environ['PINY_STORIES'], 4096, 5)
    result = dict(command='python nbs/results/data.py', cores=CORES, vocab_size=4096,
                  rows=rows, real=real)
    Path(__file__).with_suffix('.json').write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))


if __name__ == '__main__':
    main()
