"""The site builds without a warning and loads nothing from elsewhere; the quickstart runs; tables are as measured."""

import json
import re
import subprocess
import sys
from pathlib import Path

from experiments.qm9_report import RELEASED

ROOT = Path(__file__).parent.parent


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
    assert "num_inference_steps" in reference and "max_stereo_attempts" in reference


def test_the_quickstart_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/index.md").read_text(), re.DOTALL)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "torch.Size([2, 14, 3])" in result.stdout, result.stderr


def test_the_main_table_of_the_readme_is_the_measured_one():
    shown = (ROOT / "README.md").read_text().split("<!-- main table -->\n")[1].split("<!-- end of main table -->")[0]
    assert shown == (ROOT / "experiments" / "results" / "main_table.md").read_text()


def test_the_qm9_tables_of_the_readme_are_the_measured_ones():
    """Every number to the digits that are shown."""
    record = json.loads((ROOT / "experiments" / "results" / "qm9.json").read_text())["models"][RELEASED]
    measured = {row: found["median"] for row, found in record["refinement"].items()}
    for row, found in record["from_graph"].items():
        title = row.replace("most central sample", "most central of 10").replace(
            "PCBridge, DDIM", "PCBridge from noise"
        )
        measured[title] = found["mean"]
    section = (ROOT / "README.md").read_text().split("## QM9: ")[1].split("\n## ")[0]
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
