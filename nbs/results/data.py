"""How fast data is prepared and read; writes data.json beside itself.

    PINY_STORIES=FOLDER python nbs/results/data.py [--megabytes 20 200 2000]      about half an hour on two cores, 10 GB of disk

All rates are of UTF-8 text, and every ratio is of two numbers of one run. `prepare` and `datasets` are timed from the start of the
process to its end; raw SentencePiece is the encoding alone, of text that is in memory, with as many threads as there are cores.
"""
import argparse, itertools, json, os, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np

from piny import storybook
from piny.dataset import SEPARATOR, Tokens, batch, prefetched, prepare, raw_stories, window_starts
from piny.tokenizer import Tokenizer

CORES = len(os.sched_getaffinity(0))
PEER = '''
import sys, datasets, tokenizers
datasets.disable_progress_bars()
tokenizer = tokenizers.Tokenizer.from_file(sys.argv[2])
rows = datasets.load_dataset('json', data_files=sys.argv[1], split='train', cache_dir=sys.argv[3])
rows.map(lambda some: dict(ids=[e.ids for e in tokenizer.encode_batch(some['text'])]), batched=True, num_proc=int(sys.argv[4]), remove_columns=['text'])
'''


def watched(command):
    "Runs a command; its seconds, and the most memory that its processes held together, as resident and as proportional set, MB."
    start, most = time.perf_counter(), [0, 0]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        sums = [0, 0]
        for pid in family(process.pid):
            try: fields = dict(line.split(':') for line in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()[1:])
            except OSError: continue
            for i, name in enumerate(('Rss', 'Pss')): sums[i] += int(fields[name].split()[0]) / 1000 if name in fields else 0
        most = [max(a, b) for a, b in zip(most, sums)]
        time.sleep(0.25)
    if process.returncode: raise SystemExit(f'{command} ended with {process.returncode}')
    return time.perf_counter() - start, *most


def family(pid):
    "A process and all that came from it."
    children = {}
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try: fields = stat.read_text().rpartition(')')[2].split()
        except OSError: continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for one in found: found += children.get(one, [])
    return found


def raw_encoding(stories, tokenizer, limit):
    "MB/s of SentencePiece alone, on at most so many bytes."
    spent = done = 0
    while done < limit and (some := [story.encode() for story in itertools.islice(stories, 4096)]):
        start = time.perf_counter()
        tokenizer.processor.encode(some, add_bos=True, add_eos=True, num_threads=CORES)
        spent += time.perf_counter() - start
        done += sum(map(len, some))
    return done / spent / 1e6


def peer_tokenizer(stories, path, size):
    "A byte-level BPE of the `tokenizers` library."
    import tokenizers
    model = tokenizers.ByteLevelBPETokenizer()
    model.train_from_iterator(stories, vocab_size=size, show_progress=False)
    model.save(str(path))


def write_text(folder, megabytes):
    "Storybook text of a size, as a text file, and as JSON lines for `datasets`."
    written, count = 0, 0
    with open(folder/'train.txt', 'w') as text, open(folder/'rows.json', 'w') as rows:
        for story in storybook.stories(10**9 // 100):
            text.write(story + SEPARATOR); rows.write(json.dumps(dict(text=story)) + '\n')
            written += len(story); count += 1
            if written >= megabytes * 1e6: break
    (folder/'data').mkdir()
    (folder/'train.txt').rename(folder/'data'/'train.txt')
    (folder/'data'/'valid.txt').write_text(SEPARATOR.join(storybook.stories(200, split='validation')))
    return written, count


def measure(megabytes, tokenizer_folder, peer_file, repeats):
    tokenizer = Tokenizer.from_pretrained(tokenizer_folder)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        n_bytes, count = write_text(folder, megabytes)
        raw, ours, theirs = [], [], []
        for i in range(repeats):
            raw.append(raw_encoding(raw_stories(folder/'data'), tokenizer, 200e6))
            ours.append(watched([sys.executable, '-m', 'piny.dataset', 'prepare', str(folder/'data'), '--out', str(folder/f'out{i}'), '--tokenizer', str(tokenizer_folder)]))
            theirs.append(watched([sys.executable, '-c', PEER, str(folder/'rows.json'), str(peer_file), str(folder/f'cache{i}'), str(CORES)]))
            subprocess.run(['rm', '-rf', str(folder/f'cache{i}')])
            print(f'{megabytes} MB, run {i + 1} of {repeats}: raw {raw[-1]:.1f} MB/s, prepare {n_bytes / ours[-1][0] / 1e6:.1f}, datasets {n_bytes / theirs[-1][0] / 1e6:.1f}', flush=True)
        middle = lambda runs, i: statistics.median(run[i] for run in runs)
        row = dict(megabytes=n_bytes / 1e6, stories=count, repeats=repeats, raw=statistics.median(raw), prepare=n_bytes / middle(ours, 0) / 1e6,
                   datasets=n_bytes / middle(theirs, 0) / 1e6, prepare_rss=middle(ours, 1), prepare_pss=middle(ours, 2), datasets_rss=middle(theirs, 1), datasets_pss=middle(theirs, 2))
        row['reading'] = reading(folder/'out0')
    return row


def reading(folder, seconds=5):
    "Tokens per second of training batches, 32 windows of 512."
    tokens, rates = Tokens(folder, 'train'), {}
    starts = window_starts(tokens, 512)
    for name, wrap in ('plain', lambda b: b), ('prefetched', prefetched):
        done, begin = 0, time.perf_counter()
        for ids, targets in wrap(batch(tokens, starts, range(i * 32, i * 32 + 32), 512, 0) for i in itertools.count()):
            done += ids.numel()
            if time.perf_counter() - begin > seconds: break
        rates[name] = done / (time.perf_counter() - begin)
    return rates


def real_sample(source, vocab_size, repeats):
    "The real sample in a warm process: all rules on, against raw SentencePiece."
    stories = list(raw_stories(source))
    tokenizer = Tokenizer.train(stories, vocab_size)
    n_bytes, raw, ours = sum(len(s.encode()) for s in stories), [], []
    for i in range(repeats):
        raw.append(raw_encoding(iter(stories), tokenizer, 1e12))
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            prepare(source, tokenizer=tokenizer, out=Path(folder)/'out')
            ours.append(n_bytes / (time.perf_counter() - start) / 1e6)
    return dict(megabytes=n_bytes / 1e6, repeats=repeats, raw=statistics.median(raw), prepare=statistics.median(ours))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--megabytes', type=int, nargs='+', default=[20, 200, 2000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        training = list(storybook.stories(20_000))
        Tokenizer.train(training, 4096).save_pretrained(Path(folder)/'tokenizer')
        peer_tokenizer(training, Path(folder)/'peer.json', 4096)
        rows = [measure(size, Path(folder)/'tokenizer', Path(folder)/'peer.json', 3 if size < 1000 else 1) for size in options.megabytes]
    real = real_sample(os.environ['PINY_STORIES'], 4096, 5) if 'PINY_STORIES' in os.environ else None
    result = dict(command='python nbs/results/data.py', cores=CORES, vocab_size=4096, rows=rows, real=real)
    Path(__file__).with_suffix('.json').write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))


if __name__ == '__main__': main()
