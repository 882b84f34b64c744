"""The site builds without a warning and loads nothing from elsewhere; the quickstart runs; tables are as measured."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from experiments.drug_like_release import ROW
from experiments.outside import REFINED, RELAXED
from experiments.qm9_report import RELEASED

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"


def test_the_site_builds_strictly_and_needs_no_network(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) >= len(list((ROOT / "docs").glob("*.md")))
    loaded = (
        r"<(?:script|img|iframe)\b[^>]*\bsrc=\"(https?:)?//|<link\b[^>]*rel=\"(?:stylesheet|preconnect)\"[^>]*https?://"
    )
    assert [page.name for page in pages if re.search(loaded, page.read_text())] == []
    assert not any("url(http" in sheet.read_text() for sheet in tmp_path.rglob("*.css"))
    reference = (tmp_path / "reference/index.html").read_text()
    assert "num_inference_steps" in reference and "max_attempts" in reference


def test_the_quickstart_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/index.md").read_text(), re.DOTALL)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "torch.Size([2, 14, 3])" in result.stdout, result.stderr


def table_rows(text: str) -> list[list[str]]:
    """The cells of every row of every table."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*$", text, re.MULTILINE)]


def test_the_readme_is_short_and_its_results_are_the_measured_ones():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.split()) <= 1200
    evidence = {title: cells for title, *cells in table_rows((RESULTS / "main_table.md").read_text())}
    assert evidence[""][3:6:2] == ["bond error", "angle error (deg)"]
    qm9 = json.loads((RESULTS / "qm9.json").read_text())["models"][RELEASED]["refinement"]
    drug_like = {
        "213 drug-like": (json.loads((RESULTS / "outside.json").read_text()), ROW),
        "20 molecules and ions": (json.loads((RESULTS / "same_level.json").read_text()), "checkpoints/drug_like"),
    }
    ways = {"": REFINED, "`--relax`": RELAXED, "`--method correct`": "GFN2-xTB corrected"}

    def measured(molecules: str, start: str, prediction: str) -> list[list[float]]:
        """Bond and angle error before and after."""
        checkpoint, _, way = prediction.partition(", ")
        if checkpoint == "qm9":
            medians = [qm9[f"{start}, same conformer{what}"]["median"] for what in ("", ", refined")]
            return [[found["bond_length_error"], found["bond_angle_error"]] for found in medians]
        if checkpoint == "drug_like":
            results, name = next(found for title, found in drug_like.items() if molecules.startswith(title))
            records = [results[title]["records"].values() for title in (start, f"{name}, {ways[way]}")]
            return [[float(np.mean([r[key] for r in some])) for key in ("bonds", "angles")] for some in records]
        titles = (f"{start} (same conformer)", f"{checkpoint}: refined from {start}, mean shift")
        return [[float(cell.split()[0]) for cell in evidence[title][3:6:2]] for title in titles]

    _, _, *rows = table_rows("|" + readme.split("| molecules, level of the reference")[1].split("\n\n")[0])
    assert len(rows) == 8
    molecules = ""
    for title, start, prediction, *shown in rows:
        molecules = molecules if title == "the same" else title
        before_and_after = measured(molecules, start, prediction)
        for column, cell in enumerate(shown):
            cells = cell.split(" → ")
            digits = len(cells[0].partition(".")[2])
            expected = [round(errors[column], digits) for errors in before_and_after]
            assert expected == list(map(float, cells)), (molecules, start, prediction)


def test_the_qm9_tables_of_the_experiments_are_the_measured_ones():
    """Every number to the digits that are shown."""
    record = json.loads((RESULTS / "qm9.json").read_text())["models"][RELEASED]
    measured = {row: found["median"] for row, found in record["refinement"].items()}
    for row, found in record["from_graph"].items():
        title = row.replace("most central sample", "most central of 10").replace(
            "PCBridge, DDIM", "PCBridge from noise"
        )
        measured[title] = found["mean"]
    section = (ROOT / "experiments" / "README.md").read_text().split("## QM9: ")[1].split("\n## ")[0]
    columns = {"RMSD": "rmsd_mean", "heavy-atom RMSD": "heavy_rmsd_mean", "D-MAE": "d_mae", "D-RMSE": "d_rmse"}
    columns |= {"bond error": "bond_length_error", "angle error": "bond_angle_error"}
    num_rows = 0
    for table in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        for title, *cells in rows:
            if "(published)" in title:
                continue
            num_rows += 1
            for column, cell in zip(head[1:], cells, strict=True):
                digits = len(cell.partition(".")[2])
                assert round(measured[title][columns[column]], digits) == float(cell), (title, column)
    assert num_rows == 15
