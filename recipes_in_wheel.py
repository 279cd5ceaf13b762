"""Puts recipes/ into the wheel as mmhf/recipes, so that the tree holds one copy of them; see setup.cfg."""

from __future__ import annotations

from pathlib import Path

from setuptools.command.build_py import build_py

FOLDER = "recipes"


class BuildWithRecipes(build_py):
    """`build_py`, and the recipes. An editable install needs none of this: `mmhf` finds them beside itself."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._recipes():
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *(str(source) for source, _ in self._recipes())]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *(str(target) for _, target in self._recipes())]

    def _recipes(self) -> list[tuple[Path, Path]]:
        """Each recipe, and where it goes."""
        return [(path, Path(self.build_lib, "mmhf", path)) for path in sorted(Path(FOLDER).rglob("*.yaml"))]
