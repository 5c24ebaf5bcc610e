"""Experiments in training, one change at a time, on real text.

    PINY_STORIES=FOLDER python nbs/results/experiments.py --work FOLDER [NAME …]

    PINY_STORIES=FOLDER python nbs/results/experiments.py --work FOLDER --group NAME

Without names the search runs, in its order; a group is named `search`, `ablations` (the
model with one of its parts exchanged or left out), `mini` (the recipes at `mini`), `full`
(at the card's own size), `passes` (the same text many times), `sizes` (how the loss falls
with parameters and tokens) or `rates` (which rate suits each of these sizes). Each run
writes one small file in `nbs/results/experiments/`; what has such a file is not run again,
and what was cut off goes on from its last checkpoint with the settings that it began with.
So delete the files of what you change here, and its folders NAME-SEED in `--work`. Several
commands may share the work: give each its own names.
"""
import argparse
import contextlib
import dataclasses
import datetime
import io
import os
from pathlib import Path

from _processor import processor

HERE = Path(__file__).resolve().parent
ROWS = HERE/'experiments'

# The shape that is searched with: a million parameters.
SMALL = dict(vocab_size=2048, dim=128, hidden_dim=352, n_layers=4, n_heads=4, n_kv_heads=2)

# The card's recipe: its warm-up, cosine and tail, as shares of the run.
CARD = dict(optimizer='adamw', learning_rate=9e-4, warmup=50/10_300, schedule='cosine',
            decay=6_000/10_300, final_ratio=0.1)
# What is tried against it: Muon, and a cosine that ends at nothing with the run.
MUON = dict(optimizer='muon', learning_rate=12e-3, warmup=0.02, schedule='cosine',
            decay=1.0, final_ratio=0.0)


@dataclasses.dataclass(frozen=True)
class Experiment:
    "One change, and the question that it answers."
    question: str
    fields: dict  # of `TrainConfig` and `ModelConfig`; `warmup`, `decay`: shares of the run
    variation: str | None = None  # of `variations.VARIATIONS`
    tokens: int = 2_000_000  # to train on
    seeds: tuple = (0,)
    n_stories: int | None = None  # trained on so many, again and again; None: all once


def small(question, recipe, seeds=(0,), variation=None, n_stories=None, **changes):
    "An experiment at a million parameters and two million tokens."
    fields = {**SMALL, **recipe, **changes}
    return Experiment(question, fields, variation, seeds=seeds, n_stories=n_stories)


SEARCH = {
    'muon-3e-3': small('Which rate for Muon?', MUON, learning_rate=3e-3),
    'muon-6e-3': small('Which rate for Muon?', MUON, learning_rate=6e-3),
    'muon-12e-3': small('Which rate for Muon?', MUON, seeds=(0, 1, 2)),
    'muon-20e-3': small('Which rate for Muon?', MUON, learning_rate=20e-3),
    'card': small("The card's recipe", CARD),
    'card-2e-3': small("The card's recipe at a higher rate", CARD, learning_rate=2e-3),
    'card-4e-3': small("The card's recipe at a higher rate", CARD, learning_rate=4e-3),
    'card-8e-3': small("The card's recipe at a higher rate", CARD, learning_rate=8e-3),
    'card-batch-2048': small("The card's recipe with a smaller batch", CARD,
                             learning_rate=2e-3, tokens_per_step=2048),
    'batch-4096': small('A smaller batch?', MUON, seeds=(0, 1), tokens_per_step=4096),
    'batch-16384': small('A larger batch?', MUON, tokens_per_step=16384),
    'batch-2048': small('A smaller batch?', MUON, tokens_per_step=2048),
    'batch-2048-6e-3': small('A smaller batch at half the rate?', MUON,
                             tokens_per_step=2048, learning_rate=6e-3),
    'card-schedule': small('How much of the gain is the schedule?', MUON, warmup=50/10_300,
                           decay=6_000/10_300, final_ratio=0.1),
    'adamw': small('How much of the gain is Muon?', MUON, optimizer='adamw',
                   learning_rate=4e-3),
    'bfloat16': small('What does bfloat16 cost?', MUON, seeds=(0, 1, 2), dtype='bfloat16'),
    'batch-growth': small('A batch that grows?', MUON, seeds=(0, 1),
                          variation='growing-batch', micro_batch=4),
    'averaged': small('A running mean of the weights?', MUON, seeds=(0, 1),
                      variation='averaged-weights'),
    'averaged-constant': small('A running mean, and a rate that does not fall?', MUON,
                               seeds=(0, 1), variation='averaged-weights',
                               final_ratio=1.0),
    'constant': small('A rate that does not fall?', MUON, final_ratio=1.0),
    'linear': small('Straight down instead of a cosine?', MUON, seeds=(0, 1, 2),
                    schedule='linear'),
    'wsd': small('The peak for four fifths, then straight down?', MUON, seeds=(0, 1, 2),
                 schedule='wsd'),
    'no-weight-decay': small('Weight decay?', MUON, weight_decay=0.0),
    'weight-decay-0.3': small('Weight decay?', MUON, weight_decay=0.3),
    'stream': small('Windows cut from the stream?', MUON, packing='stream'),
    'context-256': small('Shorter windows?', MUON, seq_len=256),
    'first-weights-0.04': small('Larger first weights?', MUON, init_std=0.04),
    'deep': small('Depth or width?', MUON, dim=96, hidden_dim=256, n_layers=8),
    'wide': small('Depth or width?', MUON, dim=160, hidden_dim=448, n_layers=2),
    'vocabulary-1024': small('How many pieces?', MUON, vocab_size=1024),
    'vocabulary-4096': small('How many pieces?', MUON, seeds=(0, 1, 2), vocab_size=4096),
    'passes-4': small('Four passes over a quarter?', MUON, n_stories=2_200),
    'passes-16': small('Sixteen passes over a sixteenth?', MUON, n_stories=550),
    'dropout': small('Dropout?', MUON, variation='dropout'),
    'z-loss': small('A z-loss?', MUON, variation='z-loss'),
    'qk-norm': small('Not the card: QK-norm?', MUON, variation='qk-norm'),
    'value-residual': small('Not the card: value residuals?', MUON,
                            variation='value-residual'),
    'soft-cap': small('Not the card: capped logits?', MUON, variation='soft-cap'),
}

# Ablations: half the size, a quarter of the tokens, three seeds.
TINY = dict(vocab_size=1024, dim=96, hidden_dim=256, n_layers=4, n_heads=4, n_kv_heads=2,
            tokens_per_step=4096)


def ablation(question, variation=None, **changes):
    "The plain model of half a million parameters, with one part exchanged or left out."
    fields = {**TINY, **MUON, **changes}
    return Experiment(question, fields, variation, tokens=500_000, seeds=(0, 1, 2))


ABLATIONS = {
    'plain': ablation('The model as it is'),
    'layernorm': ablation('LayerNorm for RMSNorm', 'layernorm'),
    'no-norm': ablation('No norms at all', 'no-norm'),
    'post-norm': ablation('Norms after each sum', 'post-norm'),
    'no-positions': ablation('No positions', 'no-positions'),
    'learned-positions': ablation('Learned positions for RoPE', 'learned-positions'),
    'kv-heads-4': ablation('A key and value head for each query head', n_kv_heads=4),
    'kv-heads-1': ablation('One key and value head for all', n_kv_heads=1),
    'relu': ablation('ReLU for SwiGLU', 'relu'),
    'gelu': ablation('GELU for SwiGLU', 'gelu'),
    'untied': ablation('A head of its own', tie_embeddings=False),
    'unscaled-weights': ablation('First weights of one size', 'unscaled-weights'),
    'cut-stream': ablation('Windows cut from the stream', packing='stream'),
}

# What the search has found, which is tried against the card's recipe at two sizes.
TUNED = dict(MUON, tokens_per_step=4096, schedule='wsd')
MINI = dict(vocab_size=4096, dim=320, hidden_dim=864, n_layers=5, n_heads=10, n_kv_heads=2,
            dtype='bfloat16')


def mini(question, recipe, tokens=8_000_000, seeds=(0, 1), **changes):
    "An experiment at `mini`: 6.7 million parameters, eight million tokens."
    return Experiment(question, {**MINI, **recipe, **changes}, tokens=tokens, seeds=seeds)


AT_MINI = {
    'mini-card': mini("The card's recipe", CARD),
    'mini-card-2e-3': mini("The card's recipe at the best rate of the search", CARD,
                           learning_rate=2e-3),
    'mini-tuned': mini('The tuned recipe', TUNED),
    'mini-rate-6e-3': mini('Is half the rate better at `mini`?', TUNED, tokens=1_000_000,
                           seeds=(0,), learning_rate=6e-3),
    'mini-rate-12e-3': mini("Is the search's rate good at `mini`?", TUNED,
                            tokens=1_000_000, seeds=(0,)),
    **{f'mini-rate-{rate}': mini('Is a lower one better still?', TUNED,
                                 tokens=1_000_000, seeds=(0,), learning_rate=float(rate))
       for rate in ('3e-3', '1.5e-3')},
    'mini-tuned-third': mini('The tuned recipe, a third of the tokens', TUNED,
                             tokens=2_670_000),
    'mini-batch-2048-2e-3': mini('Half the batch, a lower rate?', TUNED, tokens=1_000_000,
                                 seeds=(0,), tokens_per_step=2048, learning_rate=2e-3),
    'mini-tuned-3e-3': mini('The tuned recipe at the best rate for `mini`', TUNED,
                            learning_rate=3e-3),
    **{f'mini-{dtype}': mini('What does bfloat16 cost at `mini`?', TUNED, tokens=500_000,
                             seeds=(0, 1, 2), learning_rate=3e-3, dtype=dtype)
       for dtype in ('float32', 'bfloat16')},
    'mini-tuned-3e-3-third': mini('The same, a third of the tokens', TUNED,
                                  tokens=2_670_000, learning_rate=3e-3),
}


def many_passes(question, steps, weight_decay, variation=None):
    "All of the text several times over, at `mini`: 7.8 million tokens a pass."
    fields = dict(MINI, optimizer='muon', learning_rate=8e-3, schedule='linear', decay=1.0,
                  final_ratio=0.0, warmup=60 / steps, weight_decay=weight_decay,
                  tokens_per_step=32_768)
    return Experiment(question, fields, variation, tokens=32_768 * steps)


PASSES = {
    'mini-16-passes': many_passes('Sixteen passes?', 3_824, 0.1),
    'mini-16-passes-decay-0.5': many_passes('With more weight decay?', 3_824, 0.5),
    'mini-8-passes-decay-1': many_passes('Half the passes, more decay?', 1_912, 1.0),
    'mini-8-passes-dropout': many_passes('And dropout?', 1_912, 1.0, 'dropout'),
    'mini-6-passes-dropout': many_passes('Fewer passes?', 1_434, 0.5, 'dropout'),
    'mini-10-passes-dropout': many_passes('More of all?', 2_390, 1.5, 'dropout'),
    'mini-14-passes-dropout': many_passes('Still more?', 3_300, 2.5, 'dropout'),
}

# The card's own model, for one pass over the sample.
FULL = dict(vocab_size=16384, dim=768, hidden_dim=2048, n_layers=4, n_heads=16,
            n_kv_heads=4, dtype='bfloat16')
AT_FULL = {
    f'full-{name}': Experiment(question, {**FULL, **recipe}, tokens=7_500_000)
    for name, question, recipe in [
        ('card', "The card's model by the card's recipe", CARD),
        ('tuned', "The card's model by the tuned recipe", TUNED),
        ('tuned-1.5e-3', "The card's model by the tuned recipe, at a lower rate",
         {**TUNED, 'learning_rate': 1.5e-3}),
    ]
}
AT_FULL |= {
    f'full-rate-{rate}': Experiment("Which rate for Muon at the card's size?",
                                    {**FULL, **TUNED, 'learning_rate': float(rate)},
                                    tokens=500_000)
    for rate in ('12e-3', '3e-3', '1.5e-3', '7.5e-4')
}
AT_FULL |= {
    f'full-{dtype}': Experiment("What does bfloat16 cost at the card's size?",
                                {**FULL, **TUNED, 'learning_rate': 3e-3, 'dtype': dtype},
                                tokens=500_000, seeds=(0, 1, 2))
    for dtype in ('float32', 'bfloat16')
}

# Five sizes, each on four numbers of tokens.
SHAPES = {  # width, width inside, layers, heads, key and value heads
    '0.4M': (80, 224, 3, 4, 2),
    '0.8M': (112, 304, 4, 4, 2),
    '1.7M': (176, 480, 4, 4, 2),
    '3.6M': (240, 640, 5, 6, 2),
    '7.1M': (320, 864, 6, 10, 2),
}
SHAPE_FIELDS = ('dim', 'hidden_dim', 'n_layers', 'n_heads', 'n_kv_heads')


def sized(size, millions, **changes):
    "The tuned recipe at one of the five sizes, with 2,048 pieces."
    fields = dict(TUNED, vocab_size=2048, dtype='bfloat16',
                  **dict(zip(SHAPE_FIELDS, SHAPES[size])))
    return Experiment('How does the loss fall with parameters and tokens?',
                      fields | changes, tokens=round(millions * 1e6))


SIZES = {f'size-{size}-{millions}M': sized(size, millions)
         for millions in (0.5, 1, 2, 4) for size in SHAPES}

# Other rates than the search's 12e-3, for a million tokens of each size; and the sizes for
# which another one was the best of them, with that one.
TRIED = {'0.4M': ('24e-3', '6e-3'), '0.8M': ('24e-3', '6e-3'), '1.7M': ('6e-3', '3e-3'),
         '3.6M': ('6e-3', '3e-3'), '7.1M': ('6e-3', '3e-3', '1.5e-3')}
BEST = {'1.7M': '6e-3', '3.6M': '6e-3', '7.1M': '3e-3'}
RATES = {f'size-{size}-rate-{rate}': sized(size, 1, learning_rate=float(rate))
         for size, rates in TRIED.items() for rate in rates}
RATES |= {f'size-{size}-{millions}M-rate-{rate}': sized(size, millions,
                                                        learning_rate=float(rate))
          for size, rate in BEST.items() for millions in (0.5, 2, 4)}

GROUPS = dict(search=SEARCH, ablations=ABLATIONS, mini=AT_MINI, passes=PASSES,
              full=AT_FULL, sizes=SIZES, rates=RATES)
ALL = {name: one for group in GROUPS.values() for name, one in group.items()}


def data_of(experiment, work):
    "The folder of stories to train on; of a part, one with its first stories alone."
    whole, n_stories = Path(os.environ['PINY_STORIES']), experiment.n_stories
    if n_stories is None:
        return whole
    folder = work/f'stories-{n_stories}'
    folder.mkdir(parents=True, exist_ok=True)
    for split, most in ('train', n_stories), ('validation', None):
        files = sorted(whole.glob(f'{split}*.jsonl'))
        lines = [line for file in files for line in file.open(encoding='utf-8')]
        (folder/f'{split}.jsonl').write_text(''.join(lines[:most]), encoding='utf-8')
    return folder


def config_of(experiment, seed, run, data):
    "The configuration of a run."
    from piny.config import make_config
    fields = dict(seq_len=512, tokens_per_step=8192) | experiment.fields
    steps = experiment.tokens // fields['tokens_per_step']
    warmup, decay = fields.pop('warmup') * steps, fields.pop('decay') * steps
    return make_config(
        'mini', data=str(data), out=str(run), seed=seed, max_steps=steps,
        warmup_steps=max(1, round(warmup)), decay_steps=max(1, round(decay)),
        eval_every=max(1, steps // 4), eval_stories=884, save_every=steps, **fields)


def train_or_go_on(experiment, seed, run):
    "Train, or train on from the last checkpoint."
    from variations import varied

    from piny.runs import resume_config
    from piny.training import train
    if (run/'run.json').is_file():
        config, checkpoint = resume_config(run)
    else:
        data = data_of(experiment, run.parent)
        config, checkpoint = config_of(experiment, seed, run, data), None
    with varied(experiment.variation), contextlib.redirect_stdout(io.StringIO()):
        train(config, checkpoint)


def device():
    "What the run was computed on."
    import torch
    return torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'


def story_of(experiment, run):
    "What the trained model makes of the book's example."
    from variations import varied

    from piny.pretrained import load_checkpoint
    from piny.sampling import generate
    with varied(experiment.variation):
        model, tokenizer = load_checkpoint(run)
        return generate(model, tokenizer, 'Lily lost her ball. She was sad.', seed=0,
                        temperature=0.8, top_p=0.95, min_p=None, repetition_penalty=1,
                        max_new_tokens=120)[0]


def row_of(name, seed, run):
    "What is kept of a run: its losses, and what and where it was."
    import torch

    from piny.metrics import read_metrics
    experiment, lines = ALL[name], read_metrics(run)
    curve = [[line['tokens'], round(line['val_bits_per_byte'], 5)]
             for line in lines if 'val_loss' in line]
    losses = [line['train_loss'] for line in lines if 'train_loss' in line]
    last = losses[-max(1, len(losses) // 50):]
    return dict(
        name=name, seed=seed, question=experiment.question, fields=experiment.fields,
        variation=experiment.variation, n_stories=experiment.n_stories,
        tokens=lines[-1]['tokens'],
        bits_per_byte=curve[-1][1], train_loss=round(sum(last) / len(last), 4),
        curve=curve, story=story_of(experiment, run), date=str(datetime.date.today()),
        processor=processor(), device=device(),
        torch=torch.__version__,
        command=f'python nbs/results/experiments.py --work FOLDER {name}')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', help='run these only')
    parser.add_argument('--group', choices=GROUPS,
                        help='run all of a group (default: search)')
    parser.add_argument('--work', required=True, type=Path, help='folder of the runs')
    options = parser.parse_args()
    if options.names and options.group:
        parser.error('names and --group were given; give one of them')
    if 'PINY_STORIES' not in os.environ:
        parser.error('PINY_STORIES is not set; give it a folder of stories')
    if unknown := set(options.names) - ALL.keys():
        parser.error(f'no such experiment: {", ".join(sorted(unknown))}; '
                     f'there are {", ".join(ALL)}')
    from piny.files import write_json
    ROWS.mkdir(exist_ok=True)
    for name in options.names or GROUPS[options.group or 'search']:
        for seed in ALL[name].seeds:
            kept, run = ROWS/f'{name}-{seed}.json', options.work/f'{name}-{seed}'
            if kept.exists():
                continue
            train_or_go_on(ALL[name], seed, run)
            row = row_of(name, seed, run)
            write_json(kept, row, indent=1)
            print(f'{name:20} seed {seed}: {row["bits_per_byte"]:.4f} bits per byte after '
                  f'{row["tokens"]:,} tokens', flush=True)


if __name__ == '__main__':
    main()
