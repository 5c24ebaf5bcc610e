"""What the book's diagrams are drawn with: boxes, arrows and labels that become one SVG.

All is in units of a pixel: a drawing is 480 wide, with letters of 14, so that it can be
read on a phone, too. Lines and letters have the colour of the page's text; one accent has a
colour of its own, which a style sheet may set as --piny-accent.
"""
import re
from html import escape
from typing import NamedTuple
from xml.etree import ElementTree

WIDTH = 480  # units; drawn at most so many pixels wide
FONT = 14  # units
LINE = 18  # from one line of a label to the next
TEXT = 'currentColor'
ACCENT = 'var(--piny-accent, #b5651d)'
PAPER = 'var(--piny-paper, #fff)'  # what a letter on the accent has
PALE = 0.07  # opacity of what is there already
LIT = 0.3  # of what the drawing is about
# widths of letters, in units of the font's size; a little wide, since fonts differ
NARROW, WIDE, CAPITAL, OTHER = 0.36, 0.92, 0.7, 0.61
FONTS = 'system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif'
CODE_FONTS = 'ui-monospace, SFMono-Regular, Menlo, Consolas, monospace'


def text_width(text):
    "About how wide a text is at most, in units."
    def letter(character):
        if character in " .,:;'!|()[]/ijlftr":
            return NARROW
        if character in 'mwMW→×…⊙':
            return WIDE
        return CAPITAL if character.isupper() else OTHER

    return FONT * sum(letter(character) for character in text)


def points_text(points):
    "Points as SVG wants them."
    return ' '.join(f'{x:.1f},{y:.1f}' for x, y in points)


def spread(left, right, n):
    "Share a stretch among so many cells: their middles, and the width of one."
    width = (right - left) / n
    return [left + (i + 0.5) * width for i in range(n)], width


class Box(NamedTuple):
    "A rectangle, by its middle; arrows go from one side to another."
    x: float
    y: float
    width: float
    height: float

    @property
    def top(self):
        return self.x, self.y - self.height / 2

    @property
    def bottom(self):
        return self.x, self.y + self.height / 2

    @property
    def left(self):
        return self.x - self.width / 2, self.y

    @property
    def right(self):
        return self.x + self.width / 2, self.y


class Drawing:
    "Shapes and labels, collected into one SVG."

    def __init__(
        self,
        height,  # units
        alt,  # what one sees, in words
    ):
        self.height, self.alt, self.shapes = height, alt, []

    def add(self, tag, content='', **attributes):
        "One element; numbers lose what no eye can see."
        pairs = ''
        for name, value in attributes.items():
            number = isinstance(value, int | float)
            value = f'{value:.1f}'.removesuffix('.0') if number else value
            pairs += f' {name.replace("_", "-")}="{value}"'
        self.shapes.append(f'<{tag}{pairs}>{content}</{tag}>')

    def label(self, x, y, text, anchor='middle', code=False, bold=False, color=TEXT):
        "A text of one or several lines, whose middle is at the height y."
        lines = text.split('\n')
        style = dict(font_family=CODE_FONTS) if code else {}
        if bold:
            style['font_weight'] = 'bold'
        if color != TEXT:
            style['fill'] = color
        for i, line in enumerate(lines):
            middle = y + (i - (len(lines) - 1) / 2) * LINE
            self.add('text', escape(line), x=x, y=middle + 0.35 * FONT, text_anchor=anchor,
                     **style)

    def box(self, x, y, width, height, text='', fill=PALE, lit=False, dashed=False,
            corner=5, code=False):
        "A box with its text in it; a lit one is filled with the accent."
        widest = max(text_width(line) for line in text.split('\n'))
        if widest > width:
            raise ValueError(f'"{text}" needs {widest:.0f} units, its box has {width:.0f}')
        box = Box(x, y, width, height)
        color = ACCENT if lit else TEXT
        style = dict(stroke_dasharray='4 3') if dashed else {}
        self.add('rect', x=box.left[0], y=box.top[1], width=width, height=height, rx=corner,
                 fill=color, fill_opacity=f'{LIT if lit else fill}', stroke=color,
                 stroke_width=1.8 if lit else 1, **style)
        if text:
            self.label(x, y, text, code=code)
        return box

    def line(self, *points, color=TEXT, width=1.3, dashed=False):
        "A line through points."
        style = dict(stroke_dasharray='4 3') if dashed else {}
        self.add('polyline', points=points_text(points), fill='none', stroke=color,
                 stroke_width=width, stroke_linejoin='round', **style)

    def arrow(self, *points, color=TEXT, width=1.3, dashed=False):
        "A line through points with a head at the last one."
        (x0, y0), (x, y) = points[-2:]
        length = ((x - x0) ** 2 + (y - y0) ** 2) ** 0.5
        dx, dy = (x - x0) / length, (y - y0) / length  # one unit towards the end
        back_x, back_y = x - 7 * dx, y - 7 * dy
        self.line(*points[:-1], (back_x, back_y), color=color, width=width, dashed=dashed)
        head = [(x, y), (back_x - 3.5 * dy, back_y + 3.5 * dx),
                (back_x + 3.5 * dy, back_y - 3.5 * dx)]
        self.add('polygon', points=points_text(head), fill=color)

    def disc(self, x, y, radius, text='', lit=False, solid=False):
        "A circle; a solid one is a point."
        color = ACCENT if lit else TEXT
        opacity = 1 if solid else LIT if lit else PALE
        self.add('circle', cx=x, cy=y, r=radius, fill=color, fill_opacity=f'{opacity}',
                 stroke=color)
        if text:
            self.label(x, y, text, bold=True, color=PAPER if lit and solid else TEXT)

    def svg(self):
        "The drawing as SVG."
        alt = escape(self.alt)
        return (f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{alt}" '
                f'viewBox="0 0 {WIDTH} {self.height}" font-family="{FONTS}" '
                f'font-size="{FONT}" fill="currentColor" style="display:block; width:100%; '
                f'max-width:{WIDTH}px; height:auto; margin:1rem auto">'
                f'<title>{alt}</title>\n' + '\n'.join(self.shapes) + '\n</svg>')

    def _repr_html_(self):
        return self.svg()

    def __repr__(self):
        return self.alt


def svg_file(svg):
    """An SVG as a file, as large as it was drawn, which takes its colour from the settings
    of the reader."""
    style = ('<style>svg { color: #1f2328 } @media (prefers-color-scheme: dark) '
             '{ svg { color: #e6edf3 } }</style>\n')
    width, height = re.search('viewBox="0 0 ([0-9]+) ([0-9]+)"', svg).groups()
    svg = re.sub(' style="display:block;[^"]*"', f' width="{width}" height="{height}"', svg,
                 count=1)
    return svg.replace('<title>', style + '<title>', 1) + '\n'


def svg_faults(svg):
    "What is wrong with a drawing: no XML, no words for it, a text outside, a fixed colour."
    try:
        tree = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        return [f'not well-formed: {error}']
    space = '{http://www.w3.org/2000/svg}'
    faults = []
    if not (tree.get('aria-label') and tree.findtext(f'{space}title')):
        faults.append('no words that say what one sees')
    _, _, width, height = (float(number) for number in tree.get('viewBox', '').split())
    for text in tree.iter(f'{space}text'):
        words, x, y = text.text or '', float(text.get('x')), float(text.get('y'))
        before = dict(start=0, middle=0.5, end=1)[text.get('text-anchor')]
        left = x - before * text_width(words)
        if left < 0 or left + text_width(words) > width or not FONT * 0.7 < y < height - 2:
            faults.append(f'"{words}" does not fit into the drawing')
    colors = set(re.findall(r'(?:fill|stroke)="([^"]+)"', svg))
    colors -= {TEXT, ACCENT, PAPER, 'none'}
    return faults + [f'a colour of its own: {color}' for color in sorted(colors)]
