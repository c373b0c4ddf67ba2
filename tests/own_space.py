"""README's example of a search space of one's own, as a module: its very text."""

from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SOURCE = README.partition("```python\n# kernels.py")[2].partition("```")[0].partition("\n")[2]

exec(compile(SOURCE, "README.md", "exec"))
