"""The site builds without a warning and loads nothing from elsewhere; the quickstart runs; the table is as measured."""

import re
import subprocess
import sys
from pathlib import Path

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
