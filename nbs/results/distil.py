"""An ensemble of teachers, and one small student: the built-in weights, made on one GPU.

    python nbs/results/distil.py --data FOLDER --work FOLDER [--until STAGE] [--rehearse]

Four stages; what the first three make is kept in `--work`, and not made again:

- `teach`: teachers, three times as large as the student, learn the training stories in
  many passes, with dropout and much weight decay, each with first weights of its own;
- `tell`: the teachers tell new stories, so that the student need not read the same ones
  again and again;
- `average`: at each token of the real and the told stories, the teachers' probabilities
  of the next one are averaged, and the likeliest are kept: the soft targets;
- `learn`: a student learns the soft targets, and on real stories the next token, too
  (Hinton et al., 2015; on told stories: Kim and Rush, 2016).

On an H200 that takes about nine minutes; `tell` takes some 50 GB of its memory, and the
targets 3 GB of the disk. The tokenizer is that of `piny-mini`. What was measured goes to
`distil.json` in `--work`, the student to `student` there; `--name`, `--steps` and
`--weight_decay` make another one. `--rehearse` runs it all on a CPU, tiny.
"""
import argparse
import dataclasses
import datetime
import hashlib
import math
import re
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from variations import DropoutBlock

import piny.model
from piny.cli import run_command
from piny.dataset import read_stories
from piny.files import read_json, replacing, write_json
from piny.model import ModelConfig, Piny
from piny.optimizer import build_optimizers, learning_rate
from piny.tokenizer import Tokenizer

BOS, EOS = 1, 2
STAGES = ['teach', 'tell', 'average', 'learn']
ASSETS = Path(__file__).resolve().parents[2]/'piny'/'assets'


@dataclasses.dataclass(frozen=True)
class Recipe:
    "How one model is trained, by Muon."
    learning_rate: float
    weight_decay: float
    passes: float = 0  # of a teacher, over the real stories
    dropout: float = 0.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    "How large everything is."
    device: str
    teacher: dict  # of `ModelConfig`
    student: dict
    teachers: list  # recipes; after the last, the best is repeated with another seed
    n_teachers: int
    rounds: int  # of telling
    n_told: int  # stories of a round, told side by side
    student_recipe: Recipe
    student_steps: int
    n_stories: int | None = None  # real stories to read; None: all
    windows: int = 64  # of a training step
    length: int = 512  # tokens of a window
    n_kept: int = 48  # likeliest tokens whose probability is kept
    hard_weight: float = 0.2  # of the real next token, where there is one
    min_p: float = 0.02  # of what teachers tell, as in `piny.next_token`


GPU = Plan(
    device='cuda',
    teacher=dict(vocab_size=4096, dim=512, hidden_dim=1376, n_layers=6, n_heads=8,
                 n_kv_heads=4),
    student=dict(vocab_size=4096, dim=320, hidden_dim=864, n_layers=5, n_heads=10,
                 n_kv_heads=2),
    teachers=[Recipe(5e-3, 2.0, passes=10, dropout=0.1),
              Recipe(5e-3, 2.0, passes=12, dropout=0.2),
              Recipe(5e-3, 3.5, passes=10, dropout=0.1)],
    n_teachers=4, rounds=4, n_told=8192,
    student_recipe=Recipe(8e-3, 0.6), student_steps=11_704)
TINY = dict(vocab_size=4096, dim=32, hidden_dim=64, n_layers=2, n_heads=2, n_kv_heads=1)
REHEARSAL = Plan(
    device='cpu', teacher=TINY, student=TINY,
    teachers=[Recipe(6e-3, 1.0, passes=1, dropout=0.1), Recipe(4e-3, 1.0, passes=1)],
    n_teachers=3, rounds=2, n_told=16,
    student_recipe=Recipe(8e-3, 0.6), student_steps=40, n_stories=100, windows=4)


# ---- text

def pack(stories, length):
    "Rows of whole stories: the longest first, each where the least room is left."
    pieces = [story[i:i + length + 1] for story in stories
              for i in range(0, max(1, len(story) - 1), length)]
    pieces.sort(key=len, reverse=True)
    rows, with_room = [], [[] for _ in range(length + 2)]  # rows by the room that is left
    for piece in pieces:
        room = next((room for room in range(len(piece), length + 2) if with_room[room]),
                    None)
        if room is None:
            row, room = [], length + 1
            rows.append(row)
        else:
            row = with_room[room].pop()
        row += piece
        with_room[room - len(piece)].append(row)
    table = torch.zeros(len(rows), length + 1, dtype=torch.int32)
    for i, row in enumerate(rows):
        table[i, :len(row)] = torch.tensor(row)
    return table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]


def parts(rows):
    "Inputs, targets and numbers of stories; -100 where a story or the row is over."
    ids, targets = rows[:, :-1].long(), rows[:, 1:].long()
    is_last = ids == EOS  # and not where bos stands: the rest of a long story has none
    doc_ids = is_last.cumsum(1) - is_last.long()
    return ids, targets.masked_fill(is_last | (targets == 0), -100), doc_ids


def read_rows(data, split, tokenizer, plan):
    "Real stories as rows, and the bytes of their text."
    texts = list(read_stories(data, split))[:plan.n_stories]
    if len(texts) < 20:
        raise ValueError(f'{data} holds {len(texts)} stories of the split {split}; '
                         'give a folder with 20 or more of each')
    stories = tokenizer.encode_batch(texts, bos=True, eos=True)
    rows = pack(stories, plan.length).to(plan.device)
    return rows, sum(len(text.encode()) for text in texts)


# ---- models

def new_model(shape, dropout, seed, device):
    "A model with its first weights, and with dropout while it trains."
    torch.manual_seed(seed)
    block = type('Block', (DropoutBlock,), dict(rate=dropout))
    with mock.patch.object(piny.model, 'Block', block):
        return Piny(ModelConfig(**shape)).to(device)


def in_bfloat16(plan):
    "A block whose products are computed in bfloat16, on a GPU."
    return torch.autocast(plan.device, torch.bfloat16, enabled=plan.device == 'cuda')


def device_name(plan):
    "What is computed on."
    return torch.cuda.get_device_name() if plan.device == 'cuda' else 'cpu'


def maybe_compile(function, plan):
    "Compiled on a GPU."
    return torch.compile(function) if plan.device == 'cuda' else function


def logits_of(model, ids, doc_ids):
    "Scores of the next tokens; a story sees itself alone."
    return model.logits(model.states(ids, doc_ids=doc_ids))


def loss_on_tokens(model, rows):
    "The mean loss of the next tokens."
    ids, targets, doc_ids = parts(rows)
    logits = logits_of(model, ids, doc_ids)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def loss_on_soft_targets(model, rows, kept_ids, kept, hard_weight):
    """The mean loss on soft targets, and on the next tokens by the weight `hard_weight`.

    A soft target holds the probabilities of the likeliest tokens; what it leaves for all
    others is compared with what the student leaves.
    """
    ids, targets, doc_ids = parts(rows)
    log_probs = logits_of(model, ids, doc_ids).log_softmax(-1)
    log_kept = log_probs.gather(-1, kept_ids.long())
    kept = kept.float()
    others = (1 - kept.sum(-1)).clamp(min=0)
    log_others = torch.log1p(-log_kept.exp().sum(-1).clamp(max=1 - 1e-6))
    soft = -(kept * log_kept).sum(-1) - others * log_others
    hard = -log_probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    counted = (targets >= 0).float()
    losses = torch.lerp(soft, hard, hard_weight[:, None])
    return (losses * counted).sum() / counted.sum()


def fit(model, recipe, n_steps, loss_of, report):
    "Train by Muon, straight down to a rate of nothing; report after each tenth."
    optimizers = build_optimizers(model, 'muon', recipe.learning_rate,
                                  weight_decay=recipe.weight_decay, bfloat16=True)
    model.train()
    for step in range(n_steps):
        rate = learning_rate(step, recipe.learning_rate, max(1, min(60, n_steps // 10)),
                             n_steps, 0.0, 'linear')
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group['lr'] = rate
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % max(1, n_steps // 10) == 0 or step + 1 == n_steps:
            report(step + 1, loss.item())
            model.train()


def batches_of(numbers, windows, seed):
    "Numbers of rows, pass after pass in a new order."
    torch.manual_seed(seed)
    left = numbers[:0]
    while True:
        while len(left) < windows:
            order = torch.randperm(len(numbers), device=numbers.device)
            left = torch.cat([left, numbers[order]])
        yield left[:windows]
        left = left[windows:]


@torch.inference_mode()
def bits_per_byte(models, rows, n_bytes, plan):
    "Of the average of their probabilities, on rows of held-out stories."
    nats = 0.0
    for some in rows.split(plan.windows):
        ids, targets, doc_ids = parts(some)
        with in_bfloat16(plan):
            probs = sum(logits_of(model, ids, doc_ids).softmax(-1) for model in models)
        right = (probs / len(models)).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        nats -= right.log().masked_fill(targets < 0, 0).sum().item()
    if not math.isfinite(nats):
        raise ValueError('a loss is not finite; give the recipe a lower learning rate')
    return nats / n_bytes / math.log(2)


# ---- the stages

class Work:
    "What all stages share: the plan, the text, and what was measured."

    def __init__(self, plan, data, work, name):
        self.plan, self.work, self.name = plan, work, name
        self.start = time.perf_counter()
        self.say('reading stories')
        self.tokenizer = Tokenizer.from_pretrained(ASSETS/'piny-mini')
        self.real, _ = read_rows(data, 'train', self.tokenizer, plan)
        self.held_out = read_rows(data, 'validation', self.tokenizer, plan)
        self.file = work/'distil.json'
        if self.file.is_file():
            self.measured = read_json(self.file)
            self.check()
        else:
            work.mkdir(parents=True, exist_ok=True)
            self.measured = dict(
                device=device_name(plan), torch=torch.__version__,
                date=str(datetime.date.today()), begun_with=self.begun_with(),
                teachers=[], students={})
        self.say(f'{len(self.real):,} rows of real stories')

    def begun_with(self):
        "What all stages must have in common: text, teachers, targets."
        text = hashlib.sha256(self.real.cpu().numpy().tobytes()).hexdigest()[:16]
        return dict(text=text, teacher=self.plan.teacher, n_kept=self.plan.n_kept)

    def check(self):
        "Refuse to go on with another text or plan, or to learn a student twice."
        if self.measured['begun_with'] != self.begun_with():
            raise ValueError(f'{self.work} was begun with other stories or another plan; '
                             'give another folder by --work')
        if self.name in self.measured['students']:
            raise ValueError(f'{self.work} has a student {self.name!r} already; '
                             'give another name by --name')

    def say(self, text):
        "A line with the seconds since the start."
        print(f'{time.perf_counter() - self.start:5.0f} s  {text}', flush=True)

    def note(self, **measured):
        "Keep what was measured."
        self.measured.update(measured)
        write_json(self.file, self.measured, indent=1)

    # -- teach

    def teach(self):
        "Train the teachers that are not there yet."
        while len(self.measured['teachers']) < self.plan.n_teachers:
            self.teach_one(len(self.measured['teachers']))
        if 'ensemble' not in self.measured:
            teachers = self.load_teachers()
            score = bits_per_byte(teachers, *self.held_out, self.plan)
            self.note(ensemble=score)
            self.say(f'{len(teachers)} teachers together: {score:.4f} bits per byte')

    def recipe_of(self, n):
        "The recipes in turn; then the best of them, with a new seed."
        if n < len(self.plan.teachers):
            return dataclasses.replace(self.plan.teachers[n], seed=n)
        best = min(self.measured['teachers'], key=lambda one: one['bits_per_byte'])
        return Recipe(**{**best['recipe'], 'seed': n})

    def teach_one(self, n):
        "Train a teacher, and keep it."
        plan, recipe = self.plan, self.recipe_of(n)
        self.say(f'teacher {n}: compiling')
        model = new_model(plan.teacher, recipe.dropout, recipe.seed, plan.device)
        loss_on = maybe_compile(loss_on_tokens, plan)
        numbers = torch.arange(len(self.real), device=plan.device)
        batches = batches_of(numbers, plan.windows, recipe.seed)
        n_steps = int(recipe.passes * len(self.real) / plan.windows)
        curve, begun = [], time.perf_counter()

        def loss_of(step):
            rows = self.real[next(batches)]
            with in_bfloat16(plan):
                return loss_on(model, rows)

        def report(step, loss):
            model.eval()
            score = bits_per_byte([model], *self.held_out, plan)
            curve.append([step, round(loss, 4), round(score, 5)])
            speed = step * plan.windows * plan.length / (time.perf_counter() - begun)
            self.say(f'teacher {n}: step {step:,} of {n_steps:,}, loss {loss:.4f}, '
                     f'{score:.4f} bits per byte, {speed:,.0f} tokens/s')

        fit(model, recipe, n_steps, loss_of, report)
        save(model.state_dict(), self.work/f'teacher-{n}.safetensors')
        one = dict(recipe=dataclasses.asdict(recipe), parameters=model.num_parameters(),
                   bits_per_byte=curve[-1][2], seconds=round(time.perf_counter() - begun),
                   curve=curve)
        self.note(teachers=[*self.measured['teachers'], one])

    def load_teachers(self):
        "All teachers that are kept, but those 3% behind the best."
        ones = self.measured['teachers']
        best = min(one['bits_per_byte'] for one in ones)
        models = []
        for n, one in enumerate(ones):
            one['in_ensemble'] = one['bits_per_byte'] < 1.03 * best
            if one['in_ensemble']:
                model = Piny(ModelConfig(**self.plan.teacher)).to(self.plan.device)
                model.load_state_dict(load_file(self.work/f'teacher-{n}.safetensors'))
                models.append(model.eval())
        return models

    # -- tell

    def tell(self):
        "Have the teachers tell stories, in turns."
        if 'told' in self.measured:
            return
        teachers, told, begun = self.load_teachers(), [], time.perf_counter()
        self.say('telling')
        for n in range(self.plan.rounds):
            told += tell_many(teachers[n % len(teachers)], self.plan, seed=n)
            self.say(f'{len(told):,} stories told, {sum(map(len, told)):,} tokens')
        rows = pack(told, self.plan.length)
        save(dict(rows=rows), self.work/'told.safetensors')
        self.say(self.tokenizer.decode(told[0]))
        self.note(told=dict(
            stories=len(told), tokens=sum(map(len, told)), rows=len(rows),
            ended=statistics.mean(story[-1] == EOS for story in told),
            seconds=round(time.perf_counter() - begun)))

    # -- average

    def read_all(self):
        "Rows of the real stories and of the told ones."
        told = load_file(self.work/'told.safetensors')['rows'].to(self.plan.device)
        return torch.cat([self.real, told])

    @torch.inference_mode()
    def average(self):
        "Average the teachers' probabilities at each token; keep the likeliest."
        if 'targets' in self.measured:
            return
        plan, teachers, begun = self.plan, self.load_teachers(), time.perf_counter()
        rows = self.read_all()
        shape = len(rows), plan.length, plan.n_kept
        all_ids = torch.empty(shape, dtype=torch.int16, device=plan.device)
        all_kept = torch.empty(shape, dtype=torch.float16, device=plan.device)

        def probs_of(model, rows):
            ids, _, doc_ids = parts(rows)
            return logits_of(model, ids, doc_ids).softmax(-1)

        probs_of = maybe_compile(probs_of, plan)
        starts = range(0, len(rows), plan.windows)
        for n, start in enumerate(starts):
            some = slice(start, start + plan.windows)
            with in_bfloat16(plan):
                probs = sum(probs_of(model, rows[some]) for model in teachers)
            all_kept[some], all_ids[some] = (probs / len(teachers)).topk(plan.n_kept, -1)
            if n % max(1, len(starts) // 5) == 0:
                self.say(f'averaged {n:,} of {len(starts):,} batches')
        share = all_kept[:64].float().sum(-1).mean().item()
        save(dict(ids=all_ids, kept=all_kept), self.work/'targets.safetensors')
        self.note(targets=dict(share_of_first_rows=share,
                               seconds=round(time.perf_counter() - begun)))

    # -- learn

    def learn(self):
        "Train a student, and keep it under its name."
        plan, recipe, n_steps = self.plan, self.plan.student_recipe, self.plan.student_steps
        rows, begun = self.read_all(), time.perf_counter()
        targets = load_file(self.work/'targets.safetensors', device=plan.device)
        hard_weight = torch.zeros(len(rows), device=plan.device)
        hard_weight[:len(self.real)] = plan.hard_weight
        model = new_model(plan.student, 0.0, recipe.seed, plan.device)
        loss_on = maybe_compile(loss_on_soft_targets, plan)
        numbers = torch.arange(len(rows), device=plan.device)
        batches, curve = batches_of(numbers, plan.windows, recipe.seed), []
        self.say(f'student {self.name}: compiling')

        def loss_of(step):
            some = next(batches)
            with in_bfloat16(plan):
                return loss_on(model, rows[some], targets['ids'][some],
                               targets['kept'][some], hard_weight[some])

        def report(step, loss):
            model.eval()
            score = bits_per_byte([model], *self.held_out, plan)
            curve.append([step, round(loss, 4), round(score, 5)])
            left = (time.perf_counter() - begun) * (n_steps - step) / step
            self.say(f'student: step {step:,} of {n_steps:,}, loss {loss:.4f}, '
                     f'{score:.4f} bits per byte, {left:,.0f} s left')

        fit(model, recipe, n_steps, loss_of, report)
        model.save_pretrained(self.work/self.name, torch.bfloat16)
        filled = (rows[:, :-1] > 0).float().mean().item()  # the rest is padding
        student = dict(
            recipe=dataclasses.asdict(recipe), parameters=model.num_parameters(),
            steps=n_steps, tokens=round(n_steps * plan.windows * plan.length * filled),
            passes=n_steps * plan.windows / len(rows), hard_weight=plan.hard_weight,
            bits_per_byte=curve[-1][2],
            seconds=round(time.perf_counter() - begun), curve=curve)
        self.note(students={**self.measured['students'], self.name: student})


def save(tensors, path):
    "Write tensors as a file, whole or not at all."
    with replacing(path) as unfinished:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()},
                  unfinished)


@torch.inference_mode()
def tell_many(model, plan, seed):
    "Stories as lists of tokens, told side by side; tokens that are too rare are left out."
    torch.manual_seed(seed)
    n, length, config = plan.n_told, plan.length, model.config
    shape = n, config.n_kv_heads, length, config.head_size
    caches = [[torch.zeros(shape, dtype=torch.bfloat16, device=plan.device)
               for _ in range(2)] for _ in range(config.n_layers)]
    tokens = torch.full((n, length), EOS, device=plan.device)
    tokens[:, 0] = BOS
    going = torch.arange(n, device=plan.device)  # stories that have not ended
    for t in range(length - 1):
        attend = [cached_attention(*cache, t) for cache in caches]
        places = torch.full((len(going), 1), t, device=plan.device)
        with in_bfloat16(plan):
            states = model.states(tokens[going, t, None], positions=places, attend=attend)
            probs = model.logits(states)[:, 0].softmax(-1)
        least = plan.min_p * probs.amax(-1, keepdim=True)
        probs = probs.masked_fill(probs < least, 0)
        tokens[going, t + 1] = torch.multinomial(probs, 1)[:, 0]
        if t % 16 == 15:
            goes_on = (tokens[going, :t + 2] != EOS).all(1)
            if not goes_on.any():
                break
            if goes_on.float().mean() < 0.8:
                going = going[goes_on]
                caches = [[kept[goes_on] for kept in cache] for cache in caches]
    told = []
    for story in tokens.tolist():
        end = story.index(EOS) + 1 if EOS in story else len(story)
        told.append(story[:end])
    return told


def cached_attention(keys, values, t):
    "Attention of one token a story to those before it, which are kept."
    def attend(q, k, v):
        keys[:, :, t], values[:, :, t] = k[:, :, 0], v[:, :, 0]
        return F.scaled_dot_product_attention(
            q.to(keys.dtype), keys[:, :, :t + 1], values[:, :, :t + 1],
            enable_gqa=True).to(v.dtype)
    return attend


def changed_plan(plan, options):
    "The plan, with another student where one is asked for."
    recipe = plan.student_recipe
    if options.weight_decay is not None:
        recipe = dataclasses.replace(recipe, weight_decay=options.weight_decay)
    return dataclasses.replace(plan, student_recipe=recipe,
                               student_steps=options.steps or plan.student_steps)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, help='folder of stories')
    parser.add_argument('--work', required=True, type=Path, help='folder of the stages')
    parser.add_argument('--until', choices=STAGES, default='learn',
                        help='the last stage of this call (learn)')
    parser.add_argument('--name', default='student', help='its folder in --work (student)')
    parser.add_argument('--steps', type=int, help='of the student')
    parser.add_argument('--weight_decay', type=float, help='of the student')
    parser.add_argument('--rehearse', action='store_true', help='on a CPU, tiny')
    options = parser.parse_args()
    if not re.fullmatch('[a-z0-9-]+', options.name):
        parser.error(f'--name is {options.name!r}; expected small letters, digits and -')
    if options.steps is not None and options.steps < 1:
        parser.error(f'--steps is {options.steps}; expected 1 or more')
    plan = changed_plan(REHEARSAL if options.rehearse else GPU, options)
    if plan.device == 'cuda' and not torch.cuda.is_available():
        parser.error('there is no GPU here; --rehearse runs all stages on a CPU')
    torch._dynamo.config.recompile_limit = 64  # each model is compiled anew

    def run_stages():
        name = options.name if options.until == 'learn' else None
        work = Work(plan, options.data, options.work, name)
        for stage in STAGES[:STAGES.index(options.until) + 1]:
            getattr(work, stage)()

    sys.exit(run_command(run_stages))


if __name__ == '__main__':
    main()
