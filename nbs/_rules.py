"""Rules for code, which `python nbs/_tools.py check` and the page how_it_is_built use.

Each rule is a function that gives a list of sentences: one for each place that breaks it.
"""
import ast
import collections
import io
import re
import sys
import tokenize
from pathlib import Path
from typing import Iterator, NamedTuple

NBS = Path(__file__).resolve().parent
ROOT = NBS.parent
WIDTH = 92  # characters that a line of code has at most: the site's column holds so many
LONG_BODY = 25  # lines: a longer body is worth a look
LONGEST_BODY = 40  # lines: a longer body is refused
GROUND_FLOOR = '90'  # pages from this number on import nothing of the book
# imported inside functions, for `Piny.from_pretrained`
LATE = {('model', 'pretrained'), ('model', 'finding_weights')}
MAY_BE_SHARED = {'main'}  # the one name that several modules export
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Code(NamedTuple):
    "A cell of a page, or a script."
    place: str  # where it stands, for a reader
    source: str
    module: str = ''  # the module that it is exported to, if it is
    shown: bool = True  # the page shows it


def program(name: str) -> str:
    "The path of a command of the environment that runs this."
    return str(Path(sys.executable).with_name(name))


def is_page(path: Path) -> bool:
    "Is this notebook a page of the book, and not a leftover beside it?"
    return not any(name[0] in '._' for name in path.relative_to(NBS).parts)


def book_pages() -> list[Path]:
    "The pages in the order of the book."
    return sorted(path for path in NBS.rglob('*.ipynb') if is_page(path))


def directives(source: str) -> dict[str, str]:
    "The `#|` directives at the head of a cell, name to value."
    values = {}
    for line in source.splitlines():
        if not line.strip().startswith('#|'):
            break
        name, _, value = line.strip()[2:].strip().partition(' ')
        values[name.rstrip(':')] = value.strip()
    return values


def page_module(cells: list) -> str:
    "The module that a page exports; empty if it exports none."
    for cell in cells:
        if cell['cell_type'] == 'code' and 'default_exp' in directives(cell['source']):
            return directives(cell['source'])['default_exp']
    return ''


def page_code(path: Path) -> list[Code]:
    "The code cells of a page."
    import nbformat
    cells = nbformat.read(path, as_version=4).cells
    module = page_module(cells)
    codes = []
    for i, cell in enumerate(cells):
        if cell.cell_type != 'code':
            continue
        names = directives(cell.source).keys()
        exported = bool(names & {'export', 'exports', 'exporti'})
        codes.append(Code(f'{path.name} cell {i}', cell.source,
                          module if exported else '', not exported or 'exports' in names))
    return codes


def script_code() -> list[Code]:
    "The scripts beside the pages, and what CI runs."
    paths = [*NBS.rglob('*.py'), *(ROOT/'.ci').iterdir()]
    return [Code(str(path.relative_to(ROOT)), path.read_text(encoding='utf-8'))
            for path in sorted(paths) if '.ipynb_checkpoints' not in path.parts]


def without_magics(source: str) -> str:
    "A cell as plain Python: a line for IPython becomes `pass`."
    return re.sub(r'^(\s*)[%!].*$', r'\1pass', source, flags=re.M)


def long_lines(codes: list[Code]) -> list[str]:
    "Lines that do not fit the column."
    return [f'{code.place}: line {i} has {len(line)} characters, at most {WIDTH}: '
            f'{line.strip()[:40]} …'
            for code in codes for i, line in enumerate(code.source.splitlines(), 1)
            if len(line) > WIDTH]


def imported_modules(source: str) -> set[str]:
    "The modules of piny that a module's source imports, in functions too."
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ('piny.' if node.level else '') + (node.module or '')
            inside = base in ('piny', 'piny.')
            names = [f'piny.{alias.name}' for alias in node.names] if inside else [base]
        else:
            continue
        modules |= {name.split('.')[1] for name in names if name.startswith('piny.')}
    return modules


def against_order(
    modules: dict[str, str],  # module to the name of its page
    imports: dict[str, set[str]],  # module to the modules that it imports
) -> list[str]:
    "Imports of what stands later in the book; the ground floor may import only itself."
    faults = []
    for module, page in modules.items():
        for other in sorted(imports[module]):
            if other not in modules or (module, other) in LATE:
                continue
            other_page = modules[other]
            below = other_page >= GROUND_FLOOR
            if page >= GROUND_FLOOR and not below:
                faults.append(f'{page}: the ground floor imports {other} of the book')
            elif other_page >= page and (not below or page >= GROUND_FLOOR):
                faults.append(f'{page}: imports {other}, which stands later: {other_page}')
    return faults


def exported_names(source: str) -> list[str]:
    "A module's `__all__`."
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__':
            return ast.literal_eval(node.value)
    return []


def shared_names(
    exports: dict[str, list[str]],  # module to the names that it exports
) -> list[str]:
    "Names that two modules export."
    owners = collections.defaultdict(list)
    for module, names in exports.items():
        for name in names:
            owners[name].append(module)
    return [f'{name} is exported by {" and ".join(modules)}: a name means one thing'
            for name, modules in owners.items()
            if len(modules) > 1 and name not in MAY_BE_SHARED]


def words(source: str) -> set[str]:
    "The names in code, without comments; of texts, only those that hold code."
    try:
        readline = io.StringIO(without_magics(source)).readline
        tokens = list(tokenize.generate_tokens(readline))
    except (tokenize.TokenError, SyntaxError):  # no Python, such as .ci/run
        return set(re.findall(r'\w+', source))
    names = {token.string for token in tokens if token.type == tokenize.NAME}
    for token in tokens:
        program = 'import ' in token.string or token.string[:1] in 'fF'
        if token.type == tokenize.STRING and program:
            names |= set(re.findall(r'\w+', token.string))
    return names


def statement_names(statement: ast.stmt) -> set[str]:
    "The names that a statement defines."
    if isinstance(statement, Function | ast.ClassDef):
        return {statement.name}
    targets = [*getattr(statement, 'targets', []), getattr(statement, 'target', None)]
    return {node.id for target in targets if target for node in ast.walk(target)
            if isinstance(node, ast.Name)}


def used_names(code: Code) -> set[str]:
    "The names that a cell uses; a definition of the library does not use itself."
    if not code.module:
        return words(code.source)
    lines, names, start = code.source.splitlines(), set(), 0
    for statement in ast.parse(code.source).body:
        source = '\n'.join(lines[start:statement.end_lineno])
        names |= words(source) - statement_names(statement)
        start = statement.end_lineno or start
    return names


def unused_names(
    exports: dict[str, list[str]],  # module to the names that it exports
    codes: list[Code],  # all cells and scripts
) -> list[str]:
    "Exported names that stand nowhere but in their own definition."
    used = set().union(*(used_names(code) for code in codes))
    return [f'piny.{module}: {name} is exported, and nothing uses it'
            for module, names in exports.items() for name in names
            if name not in used | MAY_BE_SHARED]


def functions(tree: ast.AST, prefix: str = '') -> Iterator[tuple[str, Function]]:
    "Functions and methods with their full names; a function inside another counts there."
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from functions(node, f'{prefix}{node.name}.')
        elif isinstance(node, Function):
            yield prefix + node.name, node
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from functions(node, prefix)


def body_lines(function: Function, source: str) -> int:
    "How many lines a function's body has, without its docstring and blank lines."
    statements = function.body
    if ast.get_docstring(function) is not None:
        statements = statements[1:]
    if not statements:
        return 0
    last = function.end_lineno
    lines = source.splitlines()[statements[0].lineno - 1:last]
    return sum(bool(line.strip()) for line in lines)


def long_bodies(
    codes: list[Code],
    most: int,  # lines
) -> list[str]:
    "Exported functions whose body is longer than so many lines."
    faults = []
    for code in codes:
        if not code.module:
            continue
        for name, function in functions(ast.parse(code.source)):
            n_lines = body_lines(function, code.source)
            if n_lines > most:
                faults.append(f'{code.place}: the body of {name} has {n_lines} lines')
    return faults


def hidden_definitions(codes: list[Code]) -> list[str]:
    "Functions and classes that are exported by `#| export`, so that no page shows them."
    return [f'{code.place}: {node.name} is hidden; export it with #| exports'
            for code in codes if code.module and not code.shown
            for node in ast.parse(code.source).body
            if isinstance(node, Function | ast.ClassDef)]


def book_modules() -> dict[str, str]:
    "The modules with the names of their pages, in the order of the book."
    import nbformat
    modules = {}
    for path in book_pages():
        module = page_module(nbformat.read(path, as_version=4).cells)
        if module:
            modules[module] = path.stem
    return modules


def module_sources() -> dict[str, str]:
    "The modules' code, in the order of the book."
    return {module: (ROOT/'piny'/f'{module}.py').read_text(encoding='utf-8')
            for module in book_modules()}


def code_faults() -> list[str]:
    "All that breaks a rule."
    codes = [code for path in book_pages() for code in page_code(path)] + script_code()
    sources = module_sources()
    imports = {module: imported_modules(source) for module, source in sources.items()}
    exports = {module: exported_names(source) for module, source in sources.items()}
    return [*long_lines(codes), *against_order(book_modules(), imports),
            *shared_names(exports), *unused_names(exports, codes),
            *hidden_definitions(codes), *long_bodies(codes, LONGEST_BODY)]


def code_notes() -> list[str]:
    "What is allowed, and worth a look."
    codes = [code for path in book_pages() for code in page_code(path)]
    return long_bodies(codes, LONG_BODY)
