"""Put `conf/` into the package when a wheel is built; pyproject.toml has all else."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """Builds the package with `conf/` as `atlalign/conf/`; a checkout uses the folder itself."""

    def run(self) -> None:
        """Copy the modules, then the configuration."""
        super().run()
        if not self.editable_mode:
            shutil.copytree("conf", Path(self.build_lib) / "atlalign" / "conf", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConf})
