"""Studies of which nothing is trained yet."""

from pathlib import Path


def write_study(folder: Path, recipe: str, validation: str, settings: str) -> Path:
    """Writes a study of a recipe with some validation sets; `settings` are the study's others."""
    validated = recipe.replace("\nbatch:", f"\n  validation: {validation}\nbatch:")
    (folder / "recipe.yaml").write_text(validated)
    path = folder / "study.yaml"
    path.write_text(f"study: {folder}/runs\nrecipe: recipe.yaml\n{settings}")
    return path


def write_study_with_base(folder: Path, recipe: str) -> Path:
    """Writes a study of a recipe of 1,000 steps: a base, and two arms from it with two seeds."""
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "base.yaml").write_text(recipe.replace("100M", "50M"))
    path = folder / "study.yaml"
    model = f"model: {{base: {folder}/runs/bases/up}}"
    path.write_text(
        f"study: {folder}/runs\nrecipe: recipe.yaml\nbases: {{up: base.yaml}}\nseeds: [1, 2]\n"
        f"arms:\n  a: {{{model}}}\n  b: {{{model}, tokens: 200M}}\n"
    )
    return path
