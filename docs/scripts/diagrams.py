"""Draw the diagrams of the pages, which follow the reader's light or dark colours: python docs/scripts/diagrams.py."""

import math
import re
from pathlib import Path
from xml.sax.saxutils import escape

IMAGES = Path(__file__).parents[1] / "images"
STYLE = """
  text { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; text-anchor: middle; }
  .panel { fill: #ffffff; }
  .forward { fill: #dbe9ff; stroke: #2457a6; } .target { fill: #ffe3cf; stroke: #b3470b; }
  .plain { fill: #eef0f2; stroke: #6e7781; } .group { fill: none; stroke: #6e7781; stroke-dasharray: 2 4; }
  .up { stroke: #2457a6; fill: #2457a6; } .down { stroke: #b3470b; fill: #b3470b; }
  .local { stroke: #1a7f37; fill: #1a7f37; } .flow { stroke: #57606a; fill: #57606a; }
  line { stroke-width: 2; } line.local { stroke-dasharray: 5 4; } polygon { stroke: none; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .panel { fill: #161b22; }
    .forward { fill: #17335c; stroke: #79b0ff; } .target { fill: #5a2a0c; stroke: #ffa873; }
    .plain { fill: #272e38; stroke: #8b949e; } .group { stroke: #8b949e; }
    .up { stroke: #79b0ff; fill: #79b0ff; } .down { stroke: #ffa873; fill: #ffa873; }
    .local { stroke: #56d364; fill: #56d364; } .flow { stroke: #adbac7; fill: #adbac7; }
  }
"""
Point = tuple[float, float]


class Drawing:
    """An SVG with a background of its own, so that it can be read on a page of any colour."""

    def __init__(self, width: int, height: int, title: str) -> None:
        """Start with an empty panel."""
        self.size, self.title = (width, height), title
        self.parts = [f'<rect class="panel" width="{width}" height="{height}" rx="10"/>']

    def text(self, at: Point, words: str, size: float = 16, style: str = "") -> None:
        """Write words around a point; a number after ``_`` at their end is a subscript."""
        marked = re.sub(r"_(\d)$", rf'<tspan dy="4" font-size="{0.7 * size:g}">\1</tspan>', escape(words))
        self.parts.append(f'<text x="{at[0]:g}" y="{at[1]:g}" font-size="{size:g}" style="{style}">{marked}</text>')

    def box(self, centre: Point, size: Point, kind: str, first: str, second: str = "", code: bool = False) -> None:
        """Draw a box with one or two lines in it."""
        (x, y), (w, h) = centre, size
        place = f'x="{x - w / 2:g}" y="{y - h / 2:g}" width="{w:g}" height="{h:g}"'
        self.parts.append(f'<rect class="{kind}" {place} rx="7" stroke-width="1.5"/>')
        style = "font-weight: 600" + ("; font-family: ui-monospace, Menlo, Consolas, monospace" if code else "")
        self.text((x, y - 3 if second else y + 5), first, 13.5 if code else 17, style)
        if second:
            self.text((x, y + 15), second, 13.5)

    def arrow(self, start: Point, end: Point, kind: str) -> None:
        """Draw a line with a head at its end."""
        angle = math.atan2(end[1] - start[1], end[0] - start[0])
        back, side = (8 * math.cos(angle), 8 * math.sin(angle)), (5 * math.sin(angle), -5 * math.cos(angle))
        stop = (end[0] - back[0], end[1] - back[1])
        corners = (end, (stop[0] + side[0], stop[1] + side[1]), (stop[0] - side[0], stop[1] - side[1]))
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        ends = f'x1="{start[0]:g}" y1="{start[1]:g}" x2="{stop[0]:.1f}" y2="{stop[1]:.1f}"'
        self.parts.append(f'<line class="{kind}" {ends}/>')
        self.parts.append(f'<polygon class="{kind}" points="{points}"/>')

    def write(self, name: str) -> None:
        """Write the file."""
        (width, height), body = self.size, "\n".join(self.parts)
        size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
        (IMAGES / name).write_text(f"{head}\n<title>{self.title}</title>\n<style>{STYLE}</style>\n{body}\n</svg>\n")


def idea() -> None:
    """Activations up, targets down, and every layer towards its own target."""
    drawing = Drawing(480, 500, "Target propagation: activations go up, targets go down, layers move")
    left, right, size = 115, 365, (130, 50)
    rows = {3: 120, 2: 235, 1: 350}
    drawing.box((240, 36), (170, 42), "plain", "loss and label")
    drawing.arrow((left + 20, rows[3] - 25), (154, 52), "up")
    drawing.arrow((326, 52), (right - 20, rows[3] - 25), "down")
    drawing.text((415, 66), "a little better")
    for layer, y in rows.items():
        drawing.box((left, y), size, "forward", "output h_3" if layer == 3 else f"h_{layer}")
        drawing.box((right, y), size, "target", f"target ĥ_{layer}")
        drawing.arrow((left + 68, y), (right - 68, y), "local")
        drawing.text((240, y - 10), "moves")
        below = rows.get(layer - 1, 455)
        drawing.arrow((left, below - 27), (left, y + 27), "up")
        drawing.text((left - 22, (y + below) / 2 + 5), f"f_{layer}", 17)
        if layer > 1:
            drawing.arrow((right, y + 27), (right, below - 27), "down")
            drawing.text((right + 24, (y + below) / 2 + 5), f"g_{layer}", 17)
    drawing.box((left, 455), size, "plain", "input x")
    drawing.text((335, 435), "f: a layer")
    drawing.text((335, 458), "g: its approximate inverse,")
    drawing.text((335, 478), "learned locally")
    drawing.write("idea.svg")


def architecture() -> None:
    """Follow a run down the left side and a batch down the right side."""
    run = {
        "targetprop train": "",
        "parser, config": "options → configuration",
        "build, state": "data, model, engine",
        "epochs, loop": "epochs and steps",
        "recorder": "metrics, summary, screen",
        "runs/": "lock, checkpoint, status",
        "the run folder": "",
        "report/": "figures and tables",
    }
    batch = {
        "engine.py": "backward(x, y)",
        "step.py": "the algorithm, in order",
        "forward.py, layers/": "forward pass → record",
        "output_target.py": "change of the output",
        "decoders/": "propose, then apply",
        "targets.py, inversion/": "change of every layer",
        "influence.py": "normalised changes",
        "updates/": "a gradient per layer",
        ".grad": "",
    }
    drawing = Drawing(540, 690, "Architecture: a run on the left, a batch on the right")
    size, step, top = (222, 46), 68, 72
    drawing.text((130, 30), "a run", 16, "font-weight: 600")
    drawing.text((405, 30), "a batch: the library", 16, "font-weight: 600")
    for x, names in ((130, run), (405, batch)):
        for row, (name, what) in enumerate(names.items()):
            y = top + step * row
            kind = "forward" if x == 130 else "target"
            drawing.box((x, y), size, kind if what else "plain", name, what, code=True)
            if row:
                drawing.arrow((x, y - step + 24), (x, y - 24), "flow")
    drawing.arrow((243, top + 3 * step - 12), (292, top + 12), "local")
    drawing.arrow((292, top + 8 * step), (243, top + 3 * step + 14), "local")
    drawing.text((130, top + 8 * step - 14), "parser to recorder:", 13.5)
    drawing.text((130, top + 8 * step + 6), "in experiments/", 13.5)
    drawing.write("architecture.svg")


if __name__ == "__main__":
    idea()
    architecture()
