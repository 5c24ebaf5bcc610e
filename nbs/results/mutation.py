"""Does a page notice when its code is broken?

    python nbs/results/mutation.py --n 300 --seed 1  # hours; writes mutation.json
    python nbs/results/mutation.py --sample 20       # are 20 of the killed killed again?
    python nbs/results/mutation.py --survivors       # what no test noticed, as diffs

A mutant is an exported cell with one small fault, drawn at random over all that can be
made. In a copy of the tree it goes into the notebook and into the module that nbdev
exports, so that other modules and child processes see it too. Then its page runs there as
nbdev_test runs it, up to the first cell that fails: killed. Beyond three times the sound
page's time and 20 seconds it is timed out, which counts as killed.
Exit code 1: a sound page fails, too few are killed, or one of a sample survives.

A mutant with a row in the table doesn't run again; `--again` runs the survivors of the draw
once more, after tests were written for them. Only another seed then gives an honest share.

Why not mutmut or cosmic-ray? They change a module and start a test command, but here a page
defines its code itself. Cosmic-ray's operators could be used alone; but most of what they
make is annotations (`int | None`) and wording, and dropped statements and arguments are
missing. The operators are the smaller half of this script.
"""
import argparse
import ast
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Iterator, NamedTuple

import nbformat

from piny.files import write_json

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_suffix('.json')
FLOOR = 0.8  # the least share of killed mutants
MEMORY = 12 << 30  # bytes that a process may hold: a fault may make a size huge
# Faults that change nothing: pages' lines as they would be, and why.
EQUIVALENT = {
    'if (d_states is not None or d_weight is not None):': 'both are None, or neither is',
    'if (d_states is not None):': 'both are None, or neither is',
    'if (d_weight is not None):': 'both are None, or neither is',
    'h = (states[chunk])  # (rows, D)': 'autocast converts the factors of a product too',
    'is_tall = (x.size(0) >= x.size(1))': 'of a square matrix either side is the small one',
    'x = x / x.norm().clamp(min=2e-07)  # singular values below 1':
        'a guard against zero; five iterations undo a factor of two',
    'left, right = right, left ^ (splitmix64(round_key, right) & mask)':
        'splitmix64 takes a sum first',
    'scrambled = splitmix64(1, np.array([key % 2 ** 64], dtype=np.uint64))':
        'splitmix64 takes a sum first',
    'return splitmix64(int(scrambled[0]), np.arange(N_ROUNDS, dtype=np.uint64))':
        'splitmix64 takes a sum first',
    'self.ready.put(item, timeout=0.2)': 'how often a thread looks up changes no batch',
    'values, ids = torch.sort(scores, descending=True, stable=True)': '-1 is the default',
    'values, ids = torch.sort(scores, dim=-1, descending=True, stable=False)':
        'on a CPU sorting is stable anyway',
    'values, ids = torch.sort(scores, dim=-1, descending=True)':
        'on a CPU sorting is stable anyway',
    'penalized = torch.where((scores >= 0), scores / penalty, scores * penalty)':
        'zero is zero, divided or multiplied',
    'None, "length of one head\'s vectors; dim / n_heads if None", gt=1':
        'a head dim of one is odd, which is refused anyway',
    'return (((slots < new)) & in_row | (slots == new))[:, None]':
        'the slot itself is seen by the other operand',
    'if self.scale != 2.0:': 'a product with one changes nothing, and two is never given',
    'samples = {s: text for s, text in read_samples(run).items() if (s <= step)}':
        'the new story replaces the old',
    "for text in path.read_text(errors='replace').splitlines():":
        'UTF-8 is the default where tests run',
    'bytes=2190000001,': 'an estimate, for a progress bar',
    'elif number == signal.SIGINT and (time.monotonic() - self.since >= 0.3):':
        'no clock hits the instant itself',
    'arguments = (0, 0, 0, 0, array(5), weights, 2.0, new_counting(dtype, int8, 1), '
    'array(1))': 'compiling looks at types, not at values',
    'return study.get_trials(states=states)': 'a copy of the same trials',
    'INPUT_LEVELS = 127 + 2**-31  # a little more, so that no input lies between two of '
    'them': 'half as little more keeps inputs off the edges as well',
    'divisors = [n for n in range(1, windows + 2) if windows % n == 0]':
        'no divisor is larger than the number',
}

SWAPS = [(ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.BitOr, ast.BitAnd),
         (ast.LShift, ast.RShift), (ast.Lt, ast.LtE), (ast.Gt, ast.GtE),
         (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn), (ast.And, ast.Or)]
ONE_WAY = {ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
           ast.Pow: ast.Mult, ast.BitXor: ast.BitAnd}
OTHER = dict(SWAPS) | {b: a for a, b in SWAPS} | ONE_WAY
YES_OR_NO = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
OTHER_NAME = dict(min='max', max='min', any='all', all='any', floor='ceil', ceil='floor',
                  minimum='maximum', maximum='minimum', argmax='argmin')
COMMUTATIVE = {*OTHER_NAME, 'isclose', 'equal', 'transpose', 'promote_types', 'dot'}
PASSED_ON = set('sorted reversed abs round clone detach copy strip lower clamp to'.split())
MESSAGES = set('''print say warn error set_title set_xlabel set_ylabel legend annotate
    figure subplots tqdm refresh set_postfix isinstance hasattr kill'''.split())
LOOKS = set('''help title label xlabel ylabel alpha color linewidth lw linestyle marker loc
    dpi fontsize figsize description desc tooltip placeholder layout style metavar
    unit'''.split())
PLAIN = (ast.AugAssign, ast.Call, ast.Name, ast.Attribute)  # need no parentheses


def last_name(node: ast.AST) -> str:
    "The name of a variable or attribute, or of what is called."
    node = getattr(node, 'func', node)
    return getattr(node, 'attr', getattr(node, 'id', ''))


def is_text(node: ast.AST) -> bool:
    "Is this a literal string, plain or formatted?"
    return isinstance(getattr(node, 'value', None), str) or isinstance(node, ast.JoinedStr)


def is_whole(node: ast.AST) -> bool:
    "Is this a literal whole number? Without its sign, -1 would often be the same axis."
    return type(getattr(node, 'value', None)) is int


def is_wording(node: ast.AST) -> bool:
    "Does this only say something to people? Then it stays as it is."
    match node:
        case ast.BinOp():
            return is_text(node.left) or is_text(node.right)
        case ast.Assign():
            return last_name(node.targets[0]) in {'__all__', *LOOKS}
        case ast.Expr():
            return is_text(node.value) or is_wording(node.value)
        case ast.Call():
            return last_name(node) in MESSAGES
    return isinstance(node, ast.JoinedStr)


def children(node: ast.AST) -> list[ast.AST]:
    "The nodes below a node, without annotations and wording."
    match node:
        case ast.FunctionDef():
            nodes = [*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body]
        case ast.AnnAssign():
            nodes = [node.value] if node.value else []
        case ast.Call():
            settings = [word.value for word in node.keywords if word.arg not in LOOKS]
            values = node.args[:1] if last_name(node) == 'option' else node.args
            nodes = [node.func, *values, *settings]
        case ast.ExceptHandler():
            nodes = node.body
        case ast.Raise() | ast.Assert():
            nodes = []
        case ast.If() if 'os.name' in ast.unparse(node.test):  # for another system
            nodes = []
        case _:
            nodes = list(ast.iter_child_nodes(node))
    return [node for node in nodes if not is_wording(node)]


def edited(node: ast.AST, **fields) -> str:
    "The text of a node with other fields."
    text = ast.unparse(type(node)(**dict(ast.iter_fields(node)) | fields))
    return text if isinstance(node, PLAIN) else f'({text})'


def without(nodes: list, node: ast.AST) -> list:
    return [other for other in nodes if other is not node]


def faults(node: ast.AST) -> Iterator[tuple[str, ast.AST, str]]:
    "Faults at one node: kind, node to be replaced, text in its place."
    match node:
        case ast.Constant(value=bool() | int() | float() | str()):
            new = other_constant(node.value)
            if new:
                yield 'constant', node, new
        case ast.BinOp() | ast.AugAssign() if type(node.op) in OTHER:
            yield 'operator', node, edited(node, op=OTHER[type(node.op)]())
        case ast.Compare():
            for i, op in enumerate(node.ops):
                ops = [*node.ops[:i], OTHER[type(op)](), *node.ops[i + 1:]]
                yield 'comparison', node, edited(node, ops=ops)
        case ast.BoolOp():
            yield 'and, or', node, edited(node, op=OTHER[type(node.op)]())
            for value in node.values:
                rest = without(node.values, value)
                yield 'operand dropped', node, edited(node, values=rest)
        case ast.UnaryOp(op=ast.Not() | ast.USub()) if not is_whole(node.operand):
            yield 'sign dropped', node, ast.unparse(node.operand)
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            if 'os.name' not in ast.unparse(test):
                yield from negated(test)
        case ast.comprehension():
            for test in node.ifs:
                yield from negated(test)
        case ast.FunctionDef():
            for decorator in node.decorator_list:
                if last_name(decorator) != 'staticmethod':  # called on a class: the same
                    yield 'decorator dropped', decorator, '(lambda function: function)'
        case ast.With(items=[ast.withitem(optional_vars=None) as item]):
            no_context = "__import__('contextlib').nullcontext()"
            yield 'context dropped', item.context_expr, no_context
        case ast.Continue():
            yield 'break', node, 'break'
        case (ast.Raise() | ast.Assert() | ast.Delete() | ast.Break()
              | ast.Return(value=None) | ast.Expr(value=ast.Call())
              | ast.Assign(targets=[ast.Attribute() | ast.Subscript()])):
            yield 'statement dropped', node, 'pass'
        case ast.Call():
            yield from call_faults(node)


def negated(test: ast.AST) -> Iterator[tuple[str, ast.AST, str]]:
    "A condition negated, if no other fault of it does the same."
    match test:
        case ast.UnaryOp(op=ast.Not()):
            return
        case ast.Compare(ops=[op]) if isinstance(op, YES_OR_NO):
            return
    yield 'condition negated', test, f'(not ({ast.unparse(test)}))'


def call_faults(node: ast.Call) -> Iterator[tuple[str, ast.AST, str]]:
    "Faults of a call: another function, no call, arguments swapped or left out."
    name = last_name(node)
    if name in OTHER_NAME:
        field = 'id' if isinstance(node.func, ast.Name) else 'attr'
        yield 'other function', node.func, edited(node.func, **{field: OTHER_NAME[name]})
    if name in PASSED_ON:
        operand = node.args[0] if isinstance(node.func, ast.Name) else node.func.value
        yield 'call dropped', node, f'({ast.unparse(operand)})'
    texts = any(map(is_text, node.args[:2]))
    if len(node.args) >= 2 and not texts and name not in COMMUTATIVE:
        first, second, *others = node.args
        yield 'arguments swapped', node, edited(node, args=[second, first, *others])
    for word in node.keywords:
        if word.arg and word.arg not in LOOKS:
            rest = without(node.keywords, word)
            yield 'keyword dropped', node, edited(node, keywords=rest)


def other_constant(value: bool | int | float | str) -> str | None:
    "Another constant of the same type; None for wording (with spaces) and CSS lengths."
    if isinstance(value, bool):
        return repr(not value)
    if isinstance(value, int):
        return repr(value + 1)
    if isinstance(value, float):
        return repr(value * 2 or 1.0)
    is_length = re.fullmatch(r'[\d.]+(em|px)', value)
    is_word = re.fullmatch(r'[\w./*-]+', value)
    return repr(value + 'x') if is_word and not is_length else None


class Mutant(NamedTuple):
    "An exported cell with a fault."
    page: str  # the notebook's name, without ending
    cell: int  # number in the notebook
    line: int  # in the cell
    kind: str  # of the fault
    diff: tuple[str, str]  # the lines before and after
    source: str  # of the cell

    @property
    def key(self) -> str:
        "The same only for the same fault in the same place of the same cell."
        text = '\n'.join([self.page, self.source])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def cell_mutants(page: str, cell: int, source: str) -> Iterator[Mutant]:
    "All mutants of a cell."
    lines = source.encode().splitlines(keepends=True)
    nodes, sources = [ast.parse(source)], {source}
    for node in nodes:  # grows as it goes
        nodes += children(node)
        for kind, old, new in faults(node):
            first, last = old.lineno - 1, old.end_lineno
            head = lines[first][:old.col_offset].decode()
            tail = lines[last - 1][old.end_col_offset:].decode()
            before, after = b''.join(lines[first:last]).decode(), head + new + tail
            faulty = b''.join([*lines[:first], after.encode(), *lines[last:]]).decode()
            if faulty not in sources and ast.unparse(old) != new:
                sources.add(faulty)
                diff = before.rstrip(), after.rstrip()
                yield Mutant(page, cell, old.lineno, kind, diff, faulty)


def all_mutants(tree: Path, modules: list[str]) -> list[Mutant]:
    "Every mutant that can be made of some modules, or all; without the equivalent ones."
    mutants: list[Mutant] = []
    for path in sorted((tree/'nbs').glob('[0-9]*.ipynb')):
        if modules and not {path.stem, path.stem.split('_', 1)[1]} & set(modules):
            continue
        for i, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if cell.cell_type == 'code' and cell.source.startswith('#| export'):
                mutants += cell_mutants(path.stem, i, cell.source)
    different = [mutant for mutant in mutants
                 if mutant.diff[1].strip() not in EQUIVALENT]
    print(f'{len(different)} mutants can be made', flush=True)
    return different


RUNNER = '''
import resource, sys
from pathlib import Path
import piny
from nbdev.config import get_config
from nbdev.export import nb_export
from nbdev.test import test_nb
page, memory, flags = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
assert Path(piny.__file__).parents[1] == page.parents[1], 'another piny is imported'
resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
nb_export(page, get_config().lib_path)
passed, _ = test_nb(page, get_config().tst_flags.split(), flags)
sys.exit(not passed)
'''


def copy_tree(source: Path, folder: Path) -> None:
    "Copy what pages need, with compiled functions, which take long to make."
    ignore = shutil.ignore_patterns('.ipynb_checkpoints', 'runs', 'wandb')
    for name in ('nbs', 'piny'):
        shutil.copytree(source/name, folder/name, ignore=ignore)
    for path in source.glob('[A-Za-z]*.*'):
        if path.is_file():
            shutil.copy2(path, folder)


def put_into(path: Path, mutant: Mutant) -> None:
    "Put a mutant into its cell of a notebook."
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[mutant.cell].source = mutant.source
    nbformat.write(notebook, path)


def run_page(
    tree: Path,  # the sound one
    page: str,  # name without ending
    mutant: Mutant | None,
    limit: float,  # seconds
    flags: list[str],  # of cells that nbdev_test leaves out
) -> dict:  # outcome, seconds, and the error's last line
    "Run a page in a copy of the tree."
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        copy_tree(tree, folder)
        path = folder/'nbs'/f'{page}.ipynb'
        if mutant:
            put_into(path, mutant)
        (folder/'tmp').mkdir()
        command = [sys.executable, '-c', RUNNER, str(path), str(MEMORY), *flags]
        environment = os.environ | dict(PYTHONPATH=name, TMPDIR=f'{name}/tmp', IN_TEST='1')
        start = time.monotonic()
        with open(folder/'errors', 'w') as errors:
            process = subprocess.Popen(
                command, cwd=path.parent, env=environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)
            try:
                outcome = 'killed' if process.wait(limit) else 'survived'
            except subprocess.TimeoutExpired:
                outcome = 'timed out'
            with suppress(ProcessLookupError):  # nothing of it lives on
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        seconds = round(time.monotonic() - start, 1)
        said = (folder/'errors').read_text(errors='replace').split('\n')
        last = [line.strip() for line in ['', *said] if line.strip() or not line][-1]
    return dict(outcome=outcome, seconds=seconds,
                noticed=last[:120] if outcome == 'killed' else '')


class Check:
    "A run of the check over a draw of mutants, with its table."

    def __init__(self, options: argparse.Namespace, tree: Path):
        self.options = options
        self.tree = tree
        copy_tree(ROOT, tree)  # somebody may work on the book meanwhile
        self.flags = ['slow'] if options.slow else []
        table = json.loads(TABLE.read_text())['mutants'] if TABLE.exists() else {}
        self.rows: dict[str, dict] = {} if options.sample else table  # by key
        mutants, n = all_mutants(tree, options.modules), options.n
        if options.sample:  # of those that a test noticed, while their cells stay the same
            mutants = [mutant for mutant in mutants
                       if table.get(mutant.key, {}).get('outcome') == 'killed']
            print(f'{len(mutants)} of them are killed in the table', flush=True)
            n = options.sample
        self.mutants = random.Random(options.seed).sample(mutants, min(n, len(mutants)))
        self.seconds: dict[str, float] = {}  # of the sound pages

    def measure(self, page: str) -> None:
        "Run a sound page, for its time."
        row = run_page(self.tree, page, None, 1800, self.flags)
        if row['outcome'] != 'survived':
            raise RuntimeError(f'{page} fails without a fault: {row["noticed"]}')
        self.seconds[page] = row['seconds']

    def try_mutant(self, mutant: Mutant) -> str:
        "Run a mutant's page and note its row; a line about it."
        limit = 3 * self.seconds[mutant.page] + 20
        row = run_page(self.tree, mutant.page, mutant, limit, self.flags)
        about = mutant._asdict()
        del about['source']
        self.rows[mutant.key] = about | row
        place = f'{mutant.page} cell {mutant.cell} line {mutant.line}'
        return f'{place}, {mutant.kind}: {row["outcome"]} ({row["seconds"]} s)'

    def run(self) -> None:
        "Run what has no row yet, and write the table after each."
        left = [mutant for mutant in self.mutants if mutant.key not in self.rows
                or self.options.again and self.rows[mutant.key]['outcome'] == 'survived']
        with ThreadPoolExecutor(self.options.jobs) as pool:
            list(pool.map(self.measure, sorted({mutant.page for mutant in left})))
            for i, line in enumerate(pool.map(self.try_mutant, left), 1):
                print(f'{i} of {len(left)}: {line}', flush=True)
                if not self.options.sample:
                    drawn = {name: getattr(self.options, name)
                             for name in ('n', 'seed', 'modules')}
                    result = dict(drawn=drawn, **self.summary(), mutants=dict(self.rows))
                    write_json(TABLE, result, indent=1)

    def drawn_rows(self) -> list[dict]:
        return [self.rows[mutant.key] for mutant in self.mutants if mutant.key in self.rows]

    def summary(self) -> dict:
        "Counts over the draw, as far as it has run."
        rows = self.drawn_rows()
        pages = {page: Counter() for page in sorted({row['page'] for row in rows})}
        for row in rows:
            pages[row['page']][row['outcome']] += 1
        n_survived = sum(count['survived'] for count in pages.values())
        share = round(1 - n_survived / max(1, len(rows)), 3)
        return dict(n=len(rows), n_survived=n_survived, killed_share=share, pages=pages)


def print_survivors(rows: list[dict]) -> None:
    "The survivors as small diffs."
    for row in sorted(rows, key=lambda row: (row['page'], row['cell'], row['line'])):
        if row['outcome'] == 'survived':
            place = f'{row["page"]} cell {row["cell"]} line {row["line"]}'
            print(place, f'({row["kind"]})\n-{row["diff"][0]}\n+{row["diff"][1]}\n')


def main() -> int:
    "The command line; gives the exit code."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--n', type=int, default=300, help='how many mutants (300)')
    parser.add_argument('--seed', type=int, default=1, help='of the draw (1)')
    parser.add_argument('--modules', nargs='+', default=[], help='pages or modules (all)')
    parser.add_argument('--jobs', type=int, default=1, help='how many run at a time (1)')
    parser.add_argument('--slow', action='store_true', help='run slow cells too')
    parser.add_argument('--sample', type=int, metavar='N', help='N of the killed ones')
    parser.add_argument('--again', action='store_true', help='run survivors once more')
    parser.add_argument('--survivors', action='store_true', help='print the survivors')
    options = parser.parse_args()
    if options.survivors:
        print_survivors(list(json.loads(TABLE.read_text())['mutants'].values()))
        return 0
    with tempfile.TemporaryDirectory() as tree:
        check = Check(options, Path(tree))
        try:
            check.run()
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
    print_survivors(check.drawn_rows())
    summary = check.summary()
    floor = 1.0 if options.sample else FLOOR
    print(f'{summary["n"]} mutants, {summary["n_survived"]} survived; '
          f'killed: {summary["killed_share"]:.0%}, expected: at least {floor:.0%}')
    return int(summary['killed_share'] < floor or summary['n'] < (options.sample or 0))


if __name__ == '__main__':
    sys.exit(main())
