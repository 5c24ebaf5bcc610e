"""The book's diagrams, each made from data, such as a model's shape.

A function gives a `Drawing`, which a notebook shows. What a diagram is about is lit.
"""
import bisect
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from math import cos, sin

from _drawing import ACCENT, PALE, WIDTH, Box, Drawing, spread, text_width

# ------------------------------------------------------------------------ the whole book

WAY = [('stories', 'text'), ('tokenizer', 'text to ids'), ('shards', 'ids on disk'),
       ('batches', 'f(seed, n)'), ('model', 'ids to logits'), ('loss', 'nats a token'),
       ('optimizer', 'new weights'), ('checkpoint', 'Llama folder'),
       ('sampling', 'logits to text'), ('a story', 'text'),
       ('evaluation', 'bits per byte'), ('play, share', 'web, GGUF')]
RUN = ['batches', 'model', 'loss', 'optimizer', 'checkpoint']
# the first page of each stretch of the book, and what it is about
STRETCHES = [('01', ['stories']), ('02_', ['tokenizer']), ('02b', ['stories']),
             ('04b', ['shards']), ('06', ['batches']), ('07', ['model']), ('11', ['loss']),
             ('12_', ['model']), ('12b', ['checkpoint']), ('14', ['optimizer']),
             ('15', RUN), ('16', ['sampling']), ('18b', ['evaluation']), ('21', RUN),
             ('22', ['checkpoint']), ('23', RUN), ('29', ['play, share']), ('90', [])]


def map_parts(
    page: str,  # its name, such as 08_rope
) -> list[str]:
    "Which parts of the way of the data a page is about; none for one beside the way."
    place = bisect.bisect(STRETCHES, page, key=lambda stretch: stretch[0])
    numbered = page[0].isdigit() and '_' in page  # 404 is not
    return STRETCHES[place - 1][1] if place and numbered else []


def book_map(
    lit: Iterable[str] = (),  # the parts that a page is about
    notes: bool = False,  # under each part, what it makes
) -> Drawing:
    "The way of the data, from stories to a model and back."
    lit = list(lit)
    size, gap = (46, 24) if notes else (23, 15)
    about = f'This page: {", ".join(lit)}. ' if lit else ''
    drawing = Drawing(3 * size + 2 * gap + 4, about + (
        'The way of the data: stories, tokenizer, shards, batches, model, loss, optimizer, '
        'which gives the model new weights, and checkpoint. From a checkpoint, sampling '
        'makes a story; evaluation, play and sharing start from it, too.'))
    columns = [52.5, 177.5, 302.5, 427.5]
    boxes = {}
    for i, (part, note) in enumerate(WAY):
        row, column = divmod(i, 4)
        x = columns[3 - column if row == 1 else column]
        text = f'{part}\n{note}' if notes else part
        boxes[part] = drawing.box(x, 2 + size / 2 + row * (size + gap), 103, size, text,
                                  lit=part in lit)
    draw_way(drawing, boxes, gap)
    return drawing


def draw_way(drawing, boxes, gap):
    "The map's arrows."
    parts = list(boxes.values())
    for one, other in zip(parts[:3], parts[1:4]):
        drawing.arrow(one.right, other.left)
    for one, other in zip(parts[4:7], parts[5:8]):
        drawing.arrow(one.left, other.right)
    drawing.arrow(boxes['batches'].bottom, boxes['model'].top)
    drawing.arrow(boxes['checkpoint'].bottom, boxes['sampling'].top)
    drawing.arrow(boxes['sampling'].right, boxes['a story'].left)
    x, y = boxes['optimizer'].top
    model_x, middle = boxes['model'].x - 26, y - gap / 2
    drawing.arrow((x, y), (x, middle), (model_x, middle), (model_x, y))
    x, y = boxes['checkpoint'].bottom
    last, middle = boxes['play, share'], y + gap / 2
    drawing.arrow((x, middle), (last.x, middle), last.top)
    drawing.arrow((boxes['evaluation'].x, middle), boxes['evaluation'].top)


# ------------------------------------------------------------------------------ the model

def model_diagram(
    config,  # a ModelConfig
) -> Drawing:
    "The whole model, with the shape of what goes from part to part."
    vectors, scores = f'(B, T, {config.dim})', f'(B, T, {config.vocab_size})'
    tied = ' The head is the embedding table itself.' if config.tie_embeddings else ''
    drawing = Drawing(452, (
        f'Token ids (B, T) go through the embedding table, {config.n_layers} blocks and a '
        f'norm as vectors {vectors}; the head gives logits {scores}.{tied} RoPE\'s tables '
        'go into every block.'))
    x, width = 210, 150
    ids = drawing.box(x, 20, width, 34, 'token ids')
    table = drawing.box(x, 104, width, 34, 'embedding', lit=True)
    block = drawing.box(x, 206, width, 50, f'block\n{config.n_layers} of them')
    norm = drawing.box(x, 294, width, 34, 'RMSNorm')
    head = drawing.box(x, 362, width, 34, 'head', lit=True)
    logits = drawing.box(x, 432, width, 34, 'logits')
    stack = draw_stack(drawing, block)
    steps = [(ids, table, '(B, T)'), (table, stack, vectors), (block, norm, vectors),
             (norm, head, vectors), (head, logits, scores)]
    for one, other, shape in steps:
        drawing.arrow(one.bottom, other.top)
        middle = (one.bottom[1] + other.top[1]) / 2
        drawing.label(x + 12, middle, shape, 'start', code=True)
    tables = drawing.box(56, 206, 96, 50, f'RoPE\n(T, {config.head_size})')
    drawing.arrow(tables.right, block.left)
    if config.tie_embeddings:
        corners = (392, table.y), (392, head.y)
        drawing.line(table.right, *corners, head.right, color=ACCENT, dashed=True)
        size = f'({config.vocab_size},\n{config.dim})'
        drawing.label(400, 233, f'tied:\none table\n{size}', 'start')
    return drawing


def draw_stack(drawing, block):
    "What one sees of the blocks behind a block; the outline of all of them."
    for shift in 6, 12:
        left, right = block.left[0] + shift, block.right[0] + shift
        top, bottom = block.top[1] - shift, block.bottom[1] - shift
        drawing.line((left, top + 6), (left, top), (right, top), (right, bottom),
                     (right - 6, bottom), width=1)
    return Box(block.x, block.y - 6, block.width, block.height + 12)


def block_diagram(
    config,  # a ModelConfig
) -> Drawing:
    "A block: two parts that read a normed copy of the stream and add to it."
    shape = f'(B, T, {config.dim})'
    drawing = Drawing(324, (
        f'The stream, vectors {shape}, runs straight down. Twice a copy leaves it, goes '
        'through RMSNorm and then attention, or SwiGLU, and is added to the stream.'))
    stream = 96
    drawing.arrow((stream, 30), (stream, 296), color=ACCENT, width=3)
    drawing.label(stream, 14, 'the stream ' + shape)
    drawing.label(stream, 310, 'to the next block')
    for y, part in (62, 'attention'), (184, 'SwiGLU'):
        norm = drawing.box(226, y, 110, 38, 'RMSNorm')
        layer = drawing.box(400, y, 130, 38, part, lit=True)
        drawing.arrow((stream, y), norm.left)
        drawing.arrow(norm.right, layer.left)
        drawing.arrow(layer.bottom, (layer.x, y + 66), (stream + 13, y + 66))
        drawing.disc(stream, y, 3, solid=True)
        drawing.disc(stream, y + 66, 13, '+', lit=True, solid=True)
    return drawing


def heads_diagram(
    config,  # a ModelConfig
) -> Drawing:
    "Query heads, and the key/value heads that they share."
    n_heads, n_kv_heads, size = config.n_heads, config.n_kv_heads, config.head_size
    n_shared = n_heads // n_kv_heads
    drawing = Drawing(276, (
        f'One vector of {config.dim} becomes {n_heads} queries of {size} and {n_kv_heads} '
        f'keys and values of {size}. Each key/value head is shared by {n_shared} query '
        'heads.'))
    middle = WIDTH / 2
    token = drawing.box(middle, 20, 200, 34, f'a token\'s vector: {config.dim}')
    drawing.arrow(token.bottom, (middle, 66))
    drawing.label(middle, 80, f'q_proj: {n_heads} query heads, {size} dimensions each')
    groups, group_width = spread(0, WIDTH, n_kv_heads)
    for kv_head, group in enumerate(groups):
        half = group_width / 2 - 8
        columns, width = spread(group - half, group + half, n_shared)
        shared = drawing.box(group, 194, 96, 32, f'k, v  {kv_head}', lit=True)
        for i, x in enumerate(columns):
            head = str(kv_head * n_shared + i)
            query = drawing.box(x, 112, width - 3, 30, head, corner=3)
            drawing.line(query.bottom, shared.top)
    drawing.label(middle, 230, f'k_proj, v_proj: {n_kv_heads} key/value heads, {size} each')
    drawing.label(middle, 258, f'kept for each token: 2 × {n_kv_heads} × {size} numbers, '
                               f'not 2 × {n_heads} × {size}')
    return drawing


def attention_flow_diagram(
    tokens: Sequence[str],  # the last one asks, and all are looked at
    scores: Sequence[float],  # of its query with each key
    weights: Sequence[float],  # softmax of the scores
    head_dim: int,  # numbers in a query, a key or a value
) -> Drawing:
    "One query of one head: from the tokens' vectors to its output."
    columns, _ = spread(68, 430, len(tokens))
    shares = ', '.join(f'{token} {weight:.0%}' for token, weight in zip(tokens, weights))
    drawing = Drawing(338, (
        f'Each of {len(tokens)} tokens has a vector x, of which matrices make a key k and '
        f'a value v. The last token, {tokens[-1]}, has a query q, too. Query and key give '
        f'a score, and softmax makes the scores weights: {shares}. Each weight multiplies '
        f'its value, and their sum is the output, {head_dim} numbers.'))
    names = {18: 'x', 78: 'k, v', 110: 'q · k', 140: 'scores', 173: 'softmax',
             204: 'weights', 256: 'times v', 284: 'sum'}
    for y, name in names.items():
        drawing.label(2, y, name, 'start')
    for x, token, score, weight in zip(columns, tokens, scores, weights):
        draw_key(drawing, x, token, score, weight, token_lit=x == columns[-1])
    query = drawing.box(454, 78, 30, 28, 'q', lit=True)
    drawing.arrow((columns[-1] + 23, 18), (query.x, 18), query.top)
    drawing.line(query.bottom, (query.x, 110), (columns[0] - 8, 110), color=ACCENT)
    drawing.line((columns[0] - 8, 284), (columns[-1] - 8, 284))
    output = drawing.box(WIDTH / 2, 320, 200, 32, f'output: {head_dim} numbers', lit=True)
    drawing.arrow((output.x, 284), output.top)
    return drawing


def draw_key(drawing, x, token, score, weight, token_lit):
    "The column of one token: its key, score, weight and value."
    vector = drawing.box(x, 18, 46, 28, token, lit=token_lit)
    key = drawing.box(x - 8, 78, 32, 28, 'k')
    value = drawing.box(x + 17, 78, 14, 28, 'v')
    result = drawing.box(x - 8, 140, 38, 28, f'{score:.1f}'.replace('-', '−'))
    part = drawing.box(x - 8, 204, 38, 28, f'{weight:.0%}', lit=True)
    for box in key, value:
        drawing.arrow((box.x, vector.bottom[1]), box.top)
    drawing.arrow(key.bottom, result.top)
    drawing.disc(key.x, 110, 3, lit=True, solid=True)
    drawing.arrow(result.bottom, part.top)
    drawing.disc(part.x, 256, 10, '×')
    drawing.arrow(part.bottom, (part.x, 246))
    drawing.arrow(value.bottom, (value.x, 256), (part.x + 10, 256))
    drawing.line((part.x, 266), (part.x, 284))


def mask_diagram(
    tokens: Sequence[str],  # a row, token by token
    doc_ids: Sequence[int] = (),  # the story that each token belongs to; none: it is one
) -> Drawing:
    "Which keys each query may see, in a row of one story or several."
    n, height, left, top = len(tokens), 25, 70, 50
    right, bottom = WIDTH - 2, top + n * height
    columns, width = spread(left, right, n)
    rows, _ = spread(top, bottom, n)
    others = ('; keys of another story are masked by doc_ids, later keys by the causal mask'
              if doc_ids else '; later keys are masked')
    drawing = Drawing(bottom + (74 if doc_ids else 46), (
        f'A square of {n} queries, one a row, by {n} keys, one a column. Each query sees '
        f'the keys {"of its own story " if doc_ids else ""}up to itself{others}.'))
    drawing.label(4, 12, 'queries', 'start')
    drawing.label((left + right) / 2, 12, 'keys')
    drawing.box((left + right) / 2, (top + bottom) / 2, right - left, bottom - top, fill=0,
                corner=2)
    for i, (x, y) in enumerate(zip(columns, rows)):
        drawing.label(x, 36, tokens[i])
        drawing.label(left - 8, y, tokens[i], 'end')
        for j in range(i + 1):
            seen = not doc_ids or doc_ids[i] == doc_ids[j]
            drawing.box(columns[j], y, width - 2, height - 2, '' if seen else '×', lit=seen,
                        corner=2)
    if doc_ids:
        drawing.label(left - 8, bottom + 16, 'doc_ids', 'end')
        for x, doc_id in zip(columns, doc_ids):
            drawing.label(x, bottom + 16, str(doc_id), code=True)
    mask_legend(drawing, ['seen', *['another story'] * bool(doc_ids), 'later'])
    return drawing


def mask_legend(drawing, meanings):
    "What the cells of a mask mean."
    x = 83
    for meaning in meanings:
        drawing.box(x, drawing.height - 16, 26, 20, '×' if 'another' in meaning else '',
                    fill=0 if meaning == 'later' else PALE, lit=meaning == 'seen', corner=2)
        drawing.label(x + 22, drawing.height - 16, meaning, 'start')
        x += 80 + text_width(meaning)


def rotation_diagram(
    head_dim: int,  # an even number
    base: float,  # of the speeds
    n_positions: int,  # how many to draw
) -> Drawing:
    "Pairs of a head's dimensions, each turned at its own speed."
    n_pairs, y, radius = head_dim // 2, 150, 42
    drawing = Drawing(262, (
        f'A head of {head_dim} dimensions in two halves, one above the other: dimension i '
        f'and dimension i + {n_pairs} make a pair. Under each pair a dial shows its '
        f'direction at positions 0 to {n_positions - 1}: the first pair goes far round, '
        'the last one hardly moves.'))
    drawing.label(4, 22, 'first half', 'start')
    drawing.label(4, 58, 'second half', 'start')
    drawing.label(4, y, f'positions\n0 to {n_positions - 1}', 'start')
    drawing.label(4, 234, 'a position\nturns by', 'start')
    columns, _ = spread(96, WIDTH, n_pairs)
    for i, x in enumerate(columns):
        speed = base ** (-2 * i / head_dim)
        drawing.box(x, 22, 60, 30, f'x{i}', code=True, corner=3)
        partner = drawing.box(x, 58, 60, 30, f'x{i + n_pairs}', code=True, corner=3)
        drawing.arrow(partner.bottom, (x, y - radius - 4))
        drawing.disc(x, y, radius)
        for position in range(n_positions):
            angle = position * speed
            tip = x + radius * cos(angle), y - radius * sin(angle)
            drawing.line((x, y), tip, color=ACCENT, width=1.6)
            drawing.disc(*tip, 3, lit=True, solid=True)
        drawing.label(x, 234, f'{speed:g}\nradian')
    return drawing


def gate_diagram(
    config,  # a ModelConfig
) -> Drawing:
    "SwiGLU: a gate, a value, their product; boxes as wide as their vectors are long."
    dim, hidden_dim = config.dim, config.hidden_dim
    drawing = Drawing(346, (
        f'A vector of {dim} goes through two matrices to {hidden_dim} each: gate, with '
        f'SiLU after it, and up. They are multiplied entry by entry, and the matrix down '
        f'makes {dim} of the {hidden_dim}.'))
    wide, middle, left, right = 210, WIDTH / 2, 110, WIDTH - 110
    narrow = max(wide * dim / hidden_dim, 60)
    x = drawing.box(middle, 20, narrow, 32, f'x: {dim}')
    gate = drawing.box(left, 104, wide, 32, f'gate: {hidden_dim}')
    up = drawing.box(right, 104, wide, 32, f'up: {hidden_dim}')
    silu = drawing.box(left, 172, wide, 32, f'silu(gate): {hidden_dim}', lit=True)
    product = drawing.box(middle, 244, wide, 32, f'product: {hidden_dim}')
    out = drawing.box(middle, 326, narrow, 32, f'out: {dim}')
    drawing.disc(middle, 172, 13, '×', lit=True)
    drawing.line(x.bottom, (middle, 60))
    drawing.arrow((middle, 60), (left, 60), gate.top)
    drawing.arrow((middle, 60), (right, 60), up.top)
    drawing.arrow(gate.bottom, silu.top)
    drawing.arrow(silu.right, (middle - 13, 172))
    drawing.arrow(up.bottom, (right, 172), (middle + 13, 172))
    drawing.arrow((middle, 185), product.top)
    drawing.arrow(product.bottom, out.top)
    drawing.label(left + 10, 74, 'gate_proj', 'start', code=True)
    drawing.label(right - 10, 74, 'up_proj', 'end', code=True)
    drawing.label(middle + 10, 285, 'down_proj', 'start', code=True)
    return drawing


# ------------------------------------------------------------------------ text and data

def tokenizer_diagram(
    pieces: Sequence[tuple[str, int]],  # names of the pieces of a text, with their ids
) -> Drawing:
    "A text's pieces and their ids; the bytes of a character are lit, and stand together."
    lines, left = [[]], 74
    for is_bytes, group in groupby(pieces, key=lambda pair: byte_of(pair[0]) is not None):
        group = list(group)
        for part in [group] if is_bytes else [[pair] for pair in group]:
            widths = [max(text_width(piece) + 14, 42) for piece, _ in part]
            if left + sum(widths) + 6 * (len(part) - 1) > WIDTH:
                lines.append([])
                left = 74
            for (piece, token_id), width in zip(part, widths):
                lines[-1].append((left + width / 2, width, piece, token_id))
                left += width + 6
    names = ', '.join(f'{piece} {token_id}' for piece, token_id in pieces)
    drawing = Drawing(len(lines) * 108 + 10,
                      f'The pieces of a text with their ids: {names}.')
    for i, line in enumerate(lines):
        draw_pieces(drawing, line, 18 + i * 108)
    return drawing


def byte_of(piece):
    "The byte that a piece stands for, as two digits; None for any other piece."
    match = re.fullmatch('<0x([0-9A-F]{2})>', piece)
    return match and match[1]


def draw_pieces(drawing, line, y):
    "A line of pieces and ids, with the characters that bytes make."
    drawing.label(4, y, 'pieces', 'start')
    drawing.label(4, y + 54, 'ids', 'start')
    for x, width, piece, token_id in line:
        box = drawing.box(x, y, width, 30, piece, lit=byte_of(piece) is not None)
        drawing.arrow(box.bottom, (x, y + 42))
        drawing.label(x, y + 54, str(token_id), code=True)
    in_bytes = [entry for entry in line if byte_of(entry[2])]
    if in_bytes:
        digits = ''.join(byte_of(piece) for _, _, piece, _ in in_bytes)
        text = bytes.fromhex(digits).decode(errors='replace')
        left = in_bytes[0][0] - in_bytes[0][1] / 2
        right = in_bytes[-1][0] + in_bytes[-1][1] / 2
        drawing.line((left, y + 64), (left, y + 69), (right, y + 69), (right, y + 64),
                     color=ACCENT)
        drawing.label((left + right) / 2, y + 82, f'the bytes of {text}')


def packing_diagram(
    ids: Sequence[int],  # a stream of tokens
    bos_id: int,  # begins a story
    starts: dict[str, Sequence[int]],  # a way to cut the stream to where windows begin
    seq_len: int,  # tokens in a window
) -> Drawing:
    "Where windows begin in a stream of stories."
    columns, width = spread(5, WIDTH - 5, len(ids))
    cuts = '; '.join(f'{way}: {", ".join(map(str, places))}'
                     for way, places in starts.items())
    drawing = Drawing(44 + 84 * len(starts), (
        f'A row of {len(ids)} tokens, story after story, and under it windows of {seq_len} '
        f'tokens as bars. They begin at the tokens {cuts}. A token that begins a story is '
        'lit, and so is a window that begins with one.'))
    story = 0
    for x, token_id in zip(columns, ids):
        story += token_id == bos_id
        drawing.box(x, 18, width - 2, 28, str(token_id), corner=2, lit=token_id == bos_id,
                    fill=PALE if story % 2 else 3 * PALE)
    for i, (way, places) in enumerate(starts.items()):
        y, end, low = 62 + 84 * i, 0, False
        n_whole = sum(ids[place] == bos_id for place in places)
        note = f'windows that begin with bos: {n_whole} of {len(places)}'
        drawing.label(6, y, way, 'start', bold=True)
        drawing.label(WIDTH - 6, y, note, 'end')
        for place in places:
            low = place < end and not low  # one that overlaps stands on another line
            end = place + seq_len
            drawing.box(5 + (place + seq_len / 2) * width, y + 49 if low else y + 25,
                        seq_len * width - 2, 18, lit=ids[place] == bos_id, corner=3)
    return drawing


# ------------------------------------------------------------------------------ training

def step_diagram(
    n_micro_batches: int,
) -> Drawing:
    "One step of training."
    drawing = Drawing(452, (
        f'A step, from top to bottom: set the learning rate; for each of {n_micro_batches} '
        'micro-batches forward and backward, and gradients add up; then the mean over '
        'processes, clipping, the optimizer\'s step, and gradients become zero.'))
    x, width = WIDTH / 2, 210
    rate = drawing.box(x, 20, width, 32, 'set the learning rate')
    frame = drawing.box(x, 153, 330, 194, fill=0, dashed=True)
    drawing.label(x, 74, f'for each of {n_micro_batches} micro-batches')
    names = ['forward: the loss', 'backward: gradients', 'gradients add up']
    inner = [drawing.box(x, 112 + 50 * i, width, 32, name, lit=True)
             for i, name in enumerate(names)]
    names = ['mean over processes', 'clip the gradients', 'optimizer step, if finite',
             'gradients = 0']
    outer = [drawing.box(x, 290 + 48 * i, width, 32, name) for i, name in enumerate(names)]
    drawing.arrow(rate.bottom, frame.top)
    drawing.arrow(frame.bottom, outer[0].top)
    for chain in inner, outer:
        for one, other in zip(chain, chain[1:]):
            drawing.arrow(one.bottom, other.top)
    (right, low), high = inner[-1].right, inner[0].y
    drawing.arrow((right, low), (right + 30, low), (right + 30, high), (right, high))
    (left, low), high = outer[-1].left, rate.y
    drawing.arrow((left, low), (24, low), (24, high), (left, high), dashed=True)
    return drawing


def batch_diagram(
    n_windows: int,  # of a step
    n_processes: int,
    micro_batch: int,  # windows that a process takes at once
) -> Drawing:
    "How the windows of a step are shared among processes."
    n_passes = n_windows // (n_processes * micro_batch)
    top, left, height = 118, 76, 36
    bottom = top + n_passes * height
    drawing = Drawing(bottom + 76, (
        f'{n_windows} windows of a step in a row. {n_processes} processes take turns, '
        f'{micro_batch} windows at a time, in {n_passes} passes. Their gradients are '
        'averaged once, after the last pass.'))
    drawing.label(WIDTH / 2, 12, f'{n_windows} windows of a step')
    cells, width = spread(5, WIDTH - 5, n_windows)
    columns, column = spread(left, WIDTH, n_processes)
    mean = drawing.box((left + WIDTH) / 2, bottom + 56, WIDTH - left - 20, 34,
                       'mean of the gradients')
    for rank, x in enumerate(columns):
        drawing.label(x, top - 16, f'process {rank}', bold=True)
        drawing.arrow((x, bottom), (x, mean.top[1]))
    for i in range(n_passes):
        y = top + (i + 0.5) * height
        drawing.label(4, y, f'pass {i + 1}', 'start')
        for rank, x in enumerate(columns):
            first = (i * n_processes + rank) * micro_batch
            windows = range(first, first + micro_batch)
            lit = rank % 2 == 1
            drawing.box(x, y, column - 20, 28, ', '.join(map(str, windows)), lit=lit)
            for window in windows:
                drawing.box(cells[window], 42, width - 2, 26, str(window), lit=lit,
                            corner=2)
    return drawing


def run_folder_diagram(
    save_every: int,  # steps
    killed_at: int,  # step
    max_steps: int,
) -> Drawing:
    "A run that is killed and resumed, and what stands in its folder."
    resumed_at = killed_at // save_every * save_every
    drawing = Drawing(262, (
        f'A run saves every {save_every} steps and is killed at step {killed_at}. It is '
        f'resumed at step {resumed_at}, the newest checkpoint, and runs to step '
        f'{max_steps}. Lines of metrics.jsonl past step {resumed_at} are dropped and '
        'written again.'))

    def place(step):
        return 122 + (WIDTH - 148) * step / max_steps

    def bar(first, last, y, text, **style):
        left, right = place(first), place(last)
        drawing.box((left + right) / 2, y, right - left, 28, text, corner=3, **style)

    rows = (14, 'step'), (56, 'started'), (104, 'resumed'), (158, 'metrics'), (244, 'saved')
    for y, name in rows:
        drawing.label(4, y, name, 'start', bold=True)
    drawing.line((place(resumed_at), 237), (place(resumed_at), 118), dashed=True)
    for step in range(0, max_steps + 1, save_every):
        drawing.label(place(step), 14, f'{step:,}')
        drawing.line((place(step), 26), (place(step), 32))
        if step:
            drawing.disc(place(step), 244, 7, lit=step > resumed_at, solid=True)
    bar(0, killed_at, 56, 'holds the lock')
    drawing.label(place(killed_at) + 8, 56, '× killed', 'start')
    bar(resumed_at, max_steps, 104, 'holds the lock', lit=True)
    bar(0, resumed_at, 158, 'kept')
    bar(resumed_at, killed_at, 158, 'dropped', fill=0, dashed=True)
    bar(resumed_at, max_steps, 194, 'written again, and on', lit=True)
    return drawing


# ------------------------------------------------------------------------------- telling

def cache_diagram(
    prompt: Sequence[str],  # its tokens
    told: Sequence[str],  # the tokens that follow
) -> Drawing:
    "The KV cache while a story grows: what is computed, and what is there already."
    tokens = [*prompt, *told]
    columns, width = spread(76, WIDTH - 74, len(tokens) - 1)
    drawing = Drawing(26 + 44 * len(told), (
        f'Rows are steps, columns are slots of the cache. The prompt fills {len(prompt)} '
        'slots at once. Each step after it fills one more and reads the others; it gives '
        'the token that the next step fills in.'))
    for slot, x in enumerate(columns):
        drawing.label(x, 12, f'slot {slot}')
    drawing.label(WIDTH - 44, 12, 'gives', 'start')
    for step in range(len(told)):
        y, n_filled = 46 + step * 44, len(prompt) + step
        n_known = n_filled - 1 if step else 0
        drawing.label(4, y, f'step {step}' if step else 'prompt', 'start')
        for slot, x in enumerate(columns):
            empty = slot >= n_filled
            drawing.box(x, y, width - 4, 28, '' if empty else tokens[slot], corner=3,
                        lit=n_known <= slot < n_filled, dashed=empty,
                        fill=0 if empty else PALE)
        drawing.arrow((WIDTH - 70, y), (WIDTH - 50, y))
        drawing.label(WIDTH - 44, y, tokens[n_filled], 'start', bold=True)
    return drawing


def padding_diagram(
    rows: Sequence[Sequence[str]],  # prompts, each as its tokens
) -> Drawing:
    "Prompts of different lengths in one cache: padding on the left, positions under it."
    n_slots = max(len(row) for row in rows)
    columns, width = spread(76, WIDTH, n_slots)
    drawing = Drawing(16 + 70 * len(rows), (
        f'{len(rows)} prompts in a cache of {n_slots} slots, all ending in the last slot. '
        'Shorter ones have empty slots before them, and their positions count from 0 after '
        'those.'))
    for slot, x in enumerate(columns):
        drawing.label(x, 12, f'slot {slot}')
    for i, row in enumerate(rows):
        y, padding = 46 + i * 70, n_slots - len(row)
        drawing.label(4, y, f'row {i}', 'start')
        drawing.label(4, y + 28, 'position', 'start')
        for slot, x in enumerate(columns):
            empty = slot < padding
            text = '' if empty else row[slot - padding]
            drawing.box(x, y, width - 4, 28, text, corner=3, lit=not empty, dashed=empty,
                        fill=0)
            drawing.label(x, y + 28, '–' if empty else str(slot - padding), code=True)
    return drawing
