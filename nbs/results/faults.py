"""Breaks training in every way of the table, over and over. Writes faults.json.

    python nbs/results/faults.py            all counts; some forty minutes on two cores
    python nbs/results/faults.py --quick    each once or twice, writes nothing
    python nbs/results/faults.py --only kill_9 --only exact

Every trial starts the real command line as processes. Disks that are full or read-only need
the right to mount.
"""
import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import torch

from piny.checkpoint import damage, list_checkpoints, read_state, snapshot, write_checkpoint
from piny.config import make_config
from piny.finding_weights import find_checkpoint
from piny.metrics import read_metrics
from piny.model import ModelConfig, Piny
from piny.optimizer import build_optimizers
from piny.runs import resume_config
from piny.saved_checkpoints import choose_checkpoint
from piny.storybook import stories
from piny.tokenizer import Tokenizer
from piny.train_ddp import launch

SMALL = dict(
    data='storybook:stories=400,plots=4,names=8', vocab_size=512, dim=64, hidden_dim=96,
    n_layers=2, n_heads=4, n_kv_heads=2, seq_len=64, tokens_per_step=512, decay_steps=1000,
    final_ratio=0.1, eval_every=100_000, eval_stories=10, save_every=5, device='cpu')
HERE = Path(__file__).parent


def words_of(fields):
    "Fields as words of the command line."
    words = []
    for key, value in fields.items():
        words += [f'--{key}', str(value)]
    return words


def options(**fields):
    "Words of the command line: the small run, with some fields changed."
    return words_of({**SMALL, **fields})


def start(*words, patch='', env=None, **fields):
    """The command line as a process.

    `patch` is code that runs first in it, in all of torchrun's workers as well.
    """
    command = ['-m', 'piny.train_ddp']
    if patch:
        main = 'from piny.train_ddp import main\nsys.exit(main(sys.argv[1:]))'
        command = ['-c', f'import sys\n{patch}\n{main}']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'WANDB_MODE': 'disabled',
                   **(env or {})}
    environment.pop('IN_TEST', None)  # under test W&B is off, whatever its mode
    if 'resume' not in fields and '--resume' not in words:
        words = [*words, *options()]
    command = [sys.executable, *command, *words, *words_of(fields)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, env=environment)


def end(process, code=0, seconds=240):
    "What a process said; its exit code has to be the one that is expected."
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(
            f'no end within {seconds} s: {process.communicate()[0][-1500:]}'
        ) from None
    assert process.returncode == code, (process.returncode, said[-2500:])
    return said


def last_step(run):
    try:
        return read_metrics(run)[-1]['step']
    except (OSError, IndexError):
        return 0


def come_to(run, step, process, seconds=120):
    "Waits until a run has come to a step."
    patience = time.monotonic() + seconds
    while last_step(run) < step:
        if process.poll() is not None:
            said = process.communicate()[0][-2500:]
            raise AssertionError(f'ended too early, with {process.returncode}: {said}')
        if time.monotonic() > patience:
            raise AssertionError(f'no step {step} within {seconds} s')
        time.sleep(0.02)


def children(pid):
    "Process ids of the children of a process."
    with contextlib.suppress(OSError):
        pids = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
        return [int(child) for child in pids]
    return []


def curve(run):
    return [
        (line['step'], line['train_loss'])
        for line in read_metrics(run)
        if 'train_loss' in line
    ]


def straight(folder, steps, **fields):
    "The curve of a run that nothing happened to."
    run = folder / 'straight'
    end(start(out=run, max_steps=steps, **fields), seconds=900)
    return curve(run)


# ---- the faults: each takes a folder and the number of trials,
# and yields a number or a word for each trial


def kill_9(folder, times):
    "kill -9 at random moments"
    # a process is killed only after a step that none before it had come to
    run, every = folder / 'run', SMALL['save_every']
    for _ in range(times):
        furthest = last_step(run)
        if (run / 'run.json').exists():
            process = start('--resume', run)
        else:
            process = start(out=run, max_steps=100_000)
        come_to(run, furthest + 1, process)
        time.sleep(random.uniform(0, 2))
        assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
        cut = bool(list((run / 'checkpoints').glob('.step-*.part')))
        found = [damage(step) for step in list_checkpoints(run)]
        assert not any(found), found
        newest = int(list_checkpoints(run)[0].name[5:]) if list_checkpoints(run) else 0
        done = last_step(run)
        # a save waits for the one before: with a checkpoint on its way, `every` steps after
        # the newest whole one, `every` more can be done until the next save waits for it
        assert 0 <= done - newest <= 2 * every, (done, newest)
        yield dict(new=done - furthest, lost=done - newest, cut=cut)
    steps = newest + 2 * every
    end(start('--resume', run, max_steps=steps))
    assert curve(run) == straight(folder, steps)


def signals(folder, times):
    "SIGTERM, Ctrl-C, SIGHUP; one process and two"
    for trial in range(times):
        number = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[trial % 6 // 2]
        processes = 1 + trial % 2
        run = folder / f'run-{trial}'
        process = start(out=run, max_steps=100_000, nproc_per_node=processes)
        come_to(run, random.randint(1, 12), process)
        process.send_signal(number)
        said = end(process, 128 + number)
        assert f'--resume {run}' in said and 'Stopped after step' in said, said
        newest = list_checkpoints(run)[0]
        assert not damage(newest) and int(newest.name[5:]) == last_step(run)
        end(start('--resume', run, max_steps=last_step(run) + 2))
        yield f'{number.name} {processes}'


def worker_killed(folder, times):
    "one worker of two killed"
    for trial in range(times):
        run = folder / f'run-{trial}'
        process = start(out=run, max_steps=60, nproc_per_node=2)
        come_to(run, random.randint(6, 30), process)
        workers = children(process.pid)
        assert len(workers) == 2, workers
        before = last_step(run)
        os.kill(workers[trial % 2], signal.SIGKILL)
        said = end(process)
        # the first save may not have been done
        assert 'goes on after step' in said or 'starts from its beginning' in said, said
        assert [step for step, _ in curve(run)] == list(range(1, 61))
        yield before


def launcher_killed(folder, times):
    "the launcher of two workers killed"
    for trial in range(times):
        run = folder / f'run-{trial}'
        process = start(out=run, max_steps=100_000, nproc_per_node=2)
        come_to(run, random.randint(6, 30), process)
        workers = children(process.pid)
        process.kill()
        process.wait()
        patience = time.monotonic() + 60
        while any(
            Path(f'/proc/{pid}').exists()
            and 'Z' not in Path(f'/proc/{pid}/stat').read_text().split()[2]
            for pid in workers
        ):
            assert time.monotonic() < patience, 'workers go on without their parent'
            time.sleep(0.1)
        process.stdout.close()
        assert int(list_checkpoints(run)[0].name[5:]) == last_step(run)
        end(start('--resume', run, max_steps=last_step(run) + 2))
        yield last_step(run)


def agent_killed(folder, times):
    "the agent of one node of two killed"
    for trial in range(times):
        run = folder / f'run-{trial}'
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = s.getsockname()[1]
        command = [
            str(Path(sys.executable).with_name('torchrun')), '--nnodes', '2',
            '--nproc_per_node', '1', '--rdzv_backend', 'c10d',
            '--rdzv_endpoint', f'127.0.0.1:{port}', '--rdzv_id', f'trial-{trial}-{port}',
            '--max_restarts', '3', '--local_addr', '127.0.0.1', '-m', 'piny.train_ddp',
            *options(out=run, max_steps=150)]
        env = {**os.environ, 'OMP_NUM_THREADS': '1', 'WANDB_MODE': 'disabled',
               'TORCH_DISABLE_SHARE_RDZV_TCP_STORE': '1'}

        def node(command=command, env=env):
            return subprocess.Popen(command, text=True, stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT, env=env)

        first = node()
        time.sleep(1)
        second = node()
        come_to(run, random.randint(6, 40), first)
        before = last_step(run)
        second.kill()
        second.communicate()
        second = node()
        said = end(first) + end(second)
        assert 'goes on after step' in said or 'starts from its beginning' in said, said
        assert [step for step, _ in curve(run)] == list(range(1, 151))
        yield before


@contextlib.contextmanager
def disk(place, size):
    "A disk in memory."
    place.mkdir(parents=True)
    if subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', place], capture_output=True
    ).returncode:
        raise PermissionError('mounting is not allowed here')
    try:
        yield place
    finally:
        subprocess.run(['umount', '-l', place], check=True)


def disk_full(folder, times):
    "disk full while saving"
    for trial in range(times):
        for recovers in (True, False):
            with disk(folder / f'disk-{trial}-{recovers}', '30m') as place:
                run, ballast = place / 'run', place / 'ballast'
                process = start(out=run, max_steps=150, save_every=20)
                come_to(run, 25, process)
                with contextlib.suppress(OSError), open(ballast, 'wb') as file:
                    while True:
                        file.write(b'0' * 4096)
                        file.flush()
                time.sleep(0.5)
                if recovers:
                    time.sleep(1)
                    ballast.unlink()
                said = end(process, 0 if recovers else 2)
                assert 'could not be written' in said, said
                assert not any(damage(step) for step in list_checkpoints(run))
                assert not list((run / 'checkpoints').glob('.step*'))
                ballast.unlink(missing_ok=True)
                if not recovers:
                    assert 'could not be saved; make room' in said
                    end(start('--resume', run))
                assert read_state(find_checkpoint(run))['step'] == 150
                assert len(curve(run)) == 150
        yield 'both'


def disk_read_only(folder, times):
    "disk read-only while saving"
    for trial in range(times):
        run = folder / f'run-{trial}'
        with disk(run / 'checkpoints', '30m') as place:
            (run / '.hidden').touch()
            process = start(out=folder / f'other-{trial}', max_steps=1)
            end(process)  # run.json to begin from
            shutil.copy(folder / f'other-{trial}' / 'run.json', run / 'run.json')
            process = start('--resume', run, max_steps=300)
            come_to(run, 8, process)
            patience = time.monotonic() + 30
            while subprocess.run(
                ['mount', '-o', 'remount,ro', place], capture_output=True
            ).returncode:
                assert time.monotonic() < patience
            here = last_step(run)
            come_to(run, here + 20, process)
            subprocess.run(['mount', '-o', 'remount,rw', place], check=True)
            said = end(process)
            assert 'could not be written' in said and 'Read-only' in said, said
            assert read_state(find_checkpoint(run))['step'] == 300 and not any(
                damage(step) for step in list_checkpoints(run)
            )
        yield here


def damaged(folder, times):
    "newest checkpoint truncated, bit-flipped, a file missing"
    end(start(out=folder / 'run', max_steps=10))
    files = sorted(
        p.relative_to(folder / 'run')
        for p in list_checkpoints(folder / 'run')[0].rglob('*')
        if p.is_file()
    )
    for trial in range(times):
        run = folder / f'copy-{trial}'
        shutil.copytree(folder / 'run', run)
        path = run / random.choice(files)
        content = bytearray(path.read_bytes())
        if trial % 3 == 0:
            path.write_bytes(content[: random.randrange(len(content) - 1)])
        if trial % 3 == 1:
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
            path.write_bytes(content)
        if trial % 3 == 2:
            path.unlink()
        said = end(start('--resume', run, max_steps=12))
        assert 'Passed over step-000010' in said, said
        assert 'going on from step-000005' in said, said
        shutil.rmtree(run)
        yield f'{("truncated", "bit-flipped", "missing")[trial % 3]} {path.name}'


SICK = """
import itertools, math, os, piny.model
healthy, counted = piny.model.Piny.forward, itertools.count(1)
def forward(self, ids, targets=None, **kwargs):
    loss = healthy(self, ids, targets, **kwargs)
    here = targets is not None and os.environ.get('RANK', '0') == os.environ['SICK_RANK']
    bad = here and next(counted) >= int(os.environ['SICK_FROM'])
    sick = bad and next(left, None) is not None
    return loss * float(os.environ['SICK']) if sick else loss
left = iter(range(int(os.environ['SICK_STEPS'])))
piny.model.Piny.forward = forward
"""


def not_finite(folder, times):
    "NaN or infinite loss or gradient"
    for trial in range(times):
        where, many = random.randint(2, 8), trial % 3 == 2
        env = dict(
            SICK=('nan', 'inf')[trial % 2],
            SICK_FROM=str(where),
            SICK_STEPS='1000' if many else '2',
            SICK_RANK='1',
            OMP_NUM_THREADS='1',
            WANDB_MODE='disabled',
        )
        script, run = folder / 'sick.py', folder / f'run-{trial}'
        script.write_text(
            f'import sys\n{SICK}\nfrom piny.train_ddp import main\nsys.exit(main())\n'
        )
        command = [
            str(Path(sys.executable).with_name('torchrun')),
            '--standalone',
            '--nproc_per_node',
            '2',
            script,
            *options(out=run, max_steps=20),
        ]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **env},
        )
        said = end(process, 1 if many else 0)  # torchrun's own exit code
        bad = [line['step'] for line in read_metrics(run) if 'skipped' in line]
        if many:
            assert len(bad) == 10 and '10 steps in a row' in said, said
        else:
            assert (
                bad == [where, where + 1]
                and read_state(find_checkpoint(run))['skipped'] == 2
            )
        yield f'{env["SICK"]}, {len(bad)} skipped'


def wandb_fails(folder, times):
    "W&B's process killed midway; W&B unreachable; silent; a resumed run keeps its W&B id"
    for trial in range(times):
        run, kind = (
            folder / f'run-{trial}',
            ('resumed', 'killed', 'unreachable', 'silent')[trial % 4],
        )
        with socket.socket() as silent:  # takes calls and never answers
            silent.bind(('127.0.0.1', 0))
            silent.listen()
            port = silent.getsockname()[1] if kind == 'silent' else 9
            online = dict(
                WANDB_MODE='online',
                WANDB_API_KEY='0' * 40,
                WANDB_BASE_URL=f'http://127.0.0.1:{port}',
            )
            env = (
                online if kind in ('unreachable', 'silent') else dict(WANDB_MODE='offline')
            )
            process = start(out=run, max_steps=60, env=env)
            if kind == 'killed':
                come_to(run, 10, process)
                helpers = [
                    pid
                    for pid in children(process.pid)
                    if 'wandb' in Path(f'/proc/{pid}/cmdline').read_text(errors='replace')
                ]
                assert helpers
                for pid in helpers:
                    os.kill(pid, signal.SIGKILL)
            said = end(process)
        if kind == 'resumed':
            before = read_state(find_checkpoint(run))['wandb_id']
            end(start('--resume', run, max_steps=70, env=env))
            assert before and read_state(find_checkpoint(run))['wandb_id'] == before
            names = [path.name for path in (run / 'wandb').glob('offline-run-*')]
            assert len(names) == 2 and all(name.endswith(f'-{before}') for name in names), (
                names
            )
        assert [step for step, _ in curve(run)] == list(
            range(1, 71 if kind == 'resumed' else 61)
        ), said
        if 'online' in env.values():
            assert 'W&B did not start' in said, said
        yield kind


def two_runs(folder, times):
    "two runs started in one folder"
    for trial in range(times):
        run = folder / f'run-{trial}'
        first = start(out=run, max_steps=100_000)
        if trial % 2:  # at the same moment: one of the two is refused
            second = start(out=run, max_steps=100_000)
            patience = time.monotonic() + 60
            while first.poll() is None and second.poll() is None:
                assert time.monotonic() < patience
                time.sleep(0.05)
            if first.poll() is not None:
                first, second = second, first
            said = end(second, 2)
        else:
            come_to(run, 3, first)
            said = end(start('--resume', run, nproc_per_node=1 + trial // 2 % 2), 2)
            said += end(start(out=run), 2)
            assert said.count('error:') == 2 and 'Traceback' not in said, said
        assert 'Another process is training in' in said or 'is there already' in said, said
        come_to(run, last_step(run) + 3, first)
        first.send_signal(signal.SIGTERM)
        end(first, 143)
        yield 'together' if trial % 2 else 'after'


MEMORY = """
import os, torch, piny.model
healthy = piny.model.Piny.forward
def forward(self, ids, *args, **kwargs):
    if self.training and len(ids) > int(os.environ['ROOM']):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')
    return healthy(self, ids, *args, **kwargs)
piny.model.Piny.forward = forward
"""


def memory(folder, times):
    "out of memory on a GPU (feigned on the CPU)"
    for trial in range(times):
        micro, room, tries = 8, random.choice((1, 2, 4)), 0
        while True:
            process = start(
                out=folder / f'run-{trial}-{micro}',
                max_steps=3,
                micro_batch=micro,
                patch=MEMORY,
                env=dict(ROOM=str(room)),
                eval_every=1000,
            )
            said = end(process, 2 if micro > room else 0)
            if micro <= room:
                break
            assert f'--micro_batch {micro // 2}; --tokens_per_step stays 512' in said, said
            assert 'Traceback' not in said, said
            micro, tries = micro // 2, tries + 1
        yield tries


JUMPING_CLOCK = """
import random, time
real = time.time
time.time = lambda: real() + random.uniform(-1e6, 1e6)
"""


def clock_jumps(folder, times):
    "clock jumps"
    for trial in range(times):
        run = folder / f'run-{trial}'
        end(start(out=run, max_steps=20, patch=JUMPING_CLOCK))
        end(start('--resume', run, max_steps=40))
        assert [step for step, _ in curve(run)] == list(range(1, 41))
        assert all(line.get('tokens_per_second', 1) > 0 for line in read_metrics(run))
        yield 40


SLOW_DISK = """
import time, piny.checkpoint as c
real = c.flush_to_disk
def flush_to_disk(path):
    time.sleep(0.3)
    real(path)
c.flush_to_disk = flush_to_disk
"""


def slow_disk(folder, times):
    "a slow disk, killed in the middle of a save"
    for trial in range(times):
        run = folder / f'run-{trial}'
        process = start(out=run, max_steps=100_000, save_every=40, patch=SLOW_DISK)
        patience = time.monotonic() + 90
        checkpoints = run / 'checkpoints'
        while not (list_checkpoints(run) and list(checkpoints.glob('.step-*.part'))):
            assert time.monotonic() < patience
            time.sleep(0.01)
        here = last_step(run)
        time.sleep(0.5)
        moved = last_step(run) - here
        process.kill()
        process.communicate()
        newest, _ = choose_checkpoint(run)
        assert newest == list_checkpoints(run)[0]
        end(start('--resume', run, max_steps=last_step(run) + 50))
        assert not list((run / 'checkpoints').glob('.step*'))
        yield moved


def log_cut(folder, times):
    "a log line cut by a kill"
    for trial in range(times):
        run = folder / f'run-{trial}'
        end(start(out=run, max_steps=10))
        log = run / 'metrics.jsonl'
        log.write_bytes(
            log.read_bytes()
            + b'{"step": 11, "tokens": 5632, "train_loss": 3.14159'[: random.randint(1, 50)]
        )
        end(start('--resume', run, max_steps=15))
        assert [
            json.loads(line)['step']
            for line in log.read_text().splitlines()
            if 'train_loss' in line
        ] == list(range(1, 16))
        yield 15


# ---- exactness

EXACT = dict(
    SMALL,
    tokens_per_step=24 * 64,
    optimizer='adamw',
    save_every=1000,
    data='storybook:stories=120,plots=4,names=8',
)


def first_gradient(config, file):
    "Trains one step and writes the gradient that the optimizer is given."
    import torch
    from safetensors.torch import save_file

    from piny.training import train

    real = torch.nn.utils.clip_grad_norm_

    def clip(parameters, *args):
        parameters = list(parameters)
        save_file(
            {str(i): p.grad.clone() for i, p in enumerate(parameters)},
            f'{file}.{os.environ.get("RANK", 0)}',
        )
        return real(parameters, *args)

    torch.nn.utils.clip_grad_norm_ = clip
    try:
        train(config)
    finally:
        torch.nn.utils.clip_grad_norm_ = real


def silently(function, *args, **kwargs):
    with open(os.devnull, 'w') as null:
        saved = os.dup(1), os.dup(2)
        try:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
            return function(*args, **kwargs)
        finally:
            for number, old in enumerate(saved, 1):
                os.dup2(old, number)
                os.close(old)


def split(folder, processes, part, optimizer):
    "Curves, weights and first gradient of a split of the batch."
    from safetensors.torch import load_file

    micro, found = 24 // processes // part, {}
    for kind, steps in (('float64', 60), ('float32', 20)):
        name = folder / f'{optimizer}-{kind}-{processes}-{part}'
        run = silently(
            launch,
            make_config(
                'demo',
                **{**EXACT, 'optimizer': optimizer},
                dtype=kind,
                micro_batch=micro,
                max_steps=steps,
                out=str(name),
            ),
            processes,
        )
        found[kind] = [loss for _, loss in curve(run)]
        if kind == 'float64':
            found['weights'] = Piny.from_pretrained(
                find_checkpoint(run), dtype=torch.float64
            ).state_dict()
    config = make_config(
        'demo',
        **{**EXACT, 'optimizer': optimizer},
        dtype='float32',
        micro_batch=micro,
        max_steps=1,
        out=f'{name}-one',
    )
    silently(launch, first_gradient, processes, (config, f'{name}.gradient'))
    found['gradient'] = torch.cat(
        [g.flatten() for _, g in sorted(load_file(f'{name}.gradient.0').items())]
    )
    return found


def exact(folder, quick, optimizer='adamw'):
    "Largest differences to one process with the whole batch, and what resuming changes."
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    torch.set_num_threads(1)
    os.environ['OMP_NUM_THREADS'] = '1'
    os.environ['WANDB_MODE'] = 'disabled'
    whole, rows = split(folder, 1, 1, optimizer), []
    for processes in (1, 2, 3):
        for part in (1, 2, 4):
            if (processes, part) == (1, 1) or 24 // processes % part:
                continue
            if quick and (processes, part) not in ((1, 4), (2, 2)):
                continue
            other = split(folder, processes, part, optimizer)
            row = dict(
                optimizer=optimizer,
                processes=processes,
                micro_batch=24 // processes // part,
                loss_64=max(
                    abs(a - b)
                    for a, b in zip(whole['float64'], other['float64'], strict=True)
                ),
                weights_64=max(
                    (whole['weights'][k] - other['weights'][k]).abs().max().item()
                    for k in whole['weights']
                ),
                loss_32=max(
                    abs(a - b)
                    for a, b in zip(whole['float32'], other['float32'], strict=True)
                ),
                gradient_32=(
                    (whole['gradient'] - other['gradient']).norm()
                    / whole['gradient'].norm()
                ).item(),
            )
            assert (
                row['loss_64'] < 1e-10
                and row['weights_64'] < 1e-10
                and row['loss_32'] < 1e-5
                and row['gradient_32'] < 1e-5
            ), row
            rows.append(row)
            print(f'exact: {row}', flush=True)
    # one process, then two, then one
    run = silently(
        launch,
        make_config(
            'demo',
            **{**EXACT, 'optimizer': optimizer},
            dtype='float64',
            max_steps=20,
            out=str(folder / f'{optimizer}-cut'),
        ),
        1,
    )
    for steps, processes in ((40, 2), (60, 1)):
        config, start = resume_config(run, max_steps=steps)
        silently(launch, config, processes, resume=start)
    weights = Piny.from_pretrained(find_checkpoint(run), dtype=torch.float64).state_dict()
    moved = dict(
        optimizer=optimizer,
        processes='1, 2, 1',
        loss_64=max(
            abs(a - b) for a, (_, b) in zip(whole['float64'], curve(run), strict=True)
        ),
        weights_64=max(
            (whole['weights'][k] - weights[k]).abs().max().item() for k in weights
        ),
    )
    assert moved['loss_64'] < 1e-10 and moved['weights_64'] < 1e-10, moved
    print(f'exact: {moved}', flush=True)
    return [*rows, moved]


# ---- how long a save holds up the loop, at the card's size


def saving():
    """Seconds, on one CPU core, of the parts of a save, and of a step.

    They are the copy, the longest silence of the loop's thread while the copy is written,
    the writing, and the checksums.
    """
    torch.set_num_threads(1)
    model = Piny(ModelConfig())
    optimizers = build_optimizers(model, 'adamw', 9e-4, 0.9, 0.95, 0.1, False)
    tokenizer = Tokenizer.train(stories(200), 512)
    found = dict.fromkeys(('copy', 'silence', 'writing', 'checking'), 0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizers[0].step()

    def note(name, begun):
        found[name] = max(found[name], time.perf_counter() - begun)

    for _ in range(3):
        begun = time.perf_counter()
        copied = snapshot(model, optimizers, dict(step=1))
        note('copy', begun)
        with tempfile.TemporaryDirectory() as folder:
            writer = threading.Thread(target=write_checkpoint,
                                      args=(folder, copied, tokenizer))
            begun = time.perf_counter()
            writer.start()
            while writer.is_alive():
                last = time.perf_counter()
                time.sleep(0.001)
                note('silence', last)
            note('writing', begun)
            begun = time.perf_counter()
            assert not damage(list_checkpoints(folder)[0])
            note('checking', begun)
    ids, begun = torch.zeros(5, 512, dtype=torch.long), time.perf_counter()
    model(ids, ids).backward()
    return {name: round(seconds, 2) for name, seconds in found.items()} | {
        'a step': round(512 / 5 * (time.perf_counter() - begun))
    }


# how often: in full, with --quick
COUNTS = {
    kill_9: (50, 3),
    signals: (18, 2),
    worker_killed: (10, 1),
    launcher_killed: (5, 1),
    agent_killed: (5, 1),
    disk_full: (3, 1),
    disk_read_only: (5, 1),
    damaged: (30, 3),
    not_finite: (9, 1),
    wandb_fails: (8, 2),
    two_runs: (8, 2),
    memory: (5, 1),
    clock_jumps: (5, 1),
    slow_disk: (5, 1),
    log_cut: (5, 1),
}


def main(args=None):
    "Runs the trials; prints progress, and a table last."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='each fault once or a few times; nothing is written',
    )
    parser.add_argument(
        '--only',
        action='append',
        metavar='FAULT',
        help=f'one of: {", ".join(f.__name__ for f in COUNTS)}, exact, saving',
    )
    chosen = parser.parse_args(args)
    path, report = HERE / 'faults.json', dict(faults={}, exact=[])
    # nohup and background jobs ignore them, and so would what they start
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)

    def put_down():
        if chosen.quick:
            return
        whole = dict(faults={}, exact=[])
        if path.exists():  # another part may run beside this one
            whole = json.loads(path.read_text())
        whole['made_with'] = dict(
            python=platform.python_version(),
            torch=torch.__version__,
            machine=f'{os.cpu_count()} CPU cores, {platform.system()}',
        )
        whole['faults'] |= report['faults']
        for part in ('exact', 'saving'):
            whole[part] = report.get(part) or whole.get(part)
        path.write_text(json.dumps(whole, indent=1) + '\n')

    for fault, counts in COUNTS.items():
        if chosen.only and fault.__name__ not in chosen.only:
            continue
        times, begun, found, failure = counts[chosen.quick], time.monotonic(), [], None
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                for outcome in fault(Path(folder), times):
                    found.append(outcome)
                    spent = time.monotonic() - begun
                    if not chosen.quick:
                        left = spent / len(found) * (times - len(found))
                        print(f'{fault.__name__}: {len(found)} of {times} ({outcome}), '
                              f'{left:.0f} s left', flush=True)
            except PermissionError as error:
                failure = f'not tried: {error}'
            except AssertionError as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                failure = f'failed: {place.line} {error}'
        report['faults'][fault.__name__] = dict(
            fault=fault.__doc__,
            tried=times if not failure else len(found) + 1,
            held=len(found),
            outcomes=found,
            failure=failure,
            seconds=round(time.monotonic() - begun),
        )
        put_down()
        if failure and (not chosen.quick or failure[0] == 'f'):
            print(f'{fault.__name__}: {failure}', flush=True)
    if not chosen.only or 'exact' in chosen.only:
        for optimizer in ('adamw',) if chosen.quick else ('adamw', 'muon'):
            with tempfile.TemporaryDirectory() as folder:
                report['exact'] += exact(Path(folder), chosen.quick, optimizer)
            put_down()
    if not chosen.quick and (not chosen.only or 'saving' in chosen.only):
        report['saving'] = saving()
        put_down()
    return report


if __name__ == '__main__':
    report = main()
    for row in report['faults'].values():
        print(f'{row["fault"]:60} {row["held"]} of {row["tried"]}  {row["failure"] or ""}')
    sys.exit(any(row['failure'] for row in report['faults'].values()))
