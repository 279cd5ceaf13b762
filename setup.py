"""Everything but one file is declared in setup.cfg.

`mmhf-torchvision.pth` makes each interpreter of the environment import mmhf (a few milliseconds, no torch), so that
programs which never mention mmhf, such as `accelerate launch`, can import torchvision beside a CPU build of torch; see
mmhf/_torchvision.py. setup.cfg cannot place a file directly in site-packages.
"""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithPathFile(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file("mmhf-torchvision.pth", self.build_lib)


setup(cmdclass={"build_py": BuildWithPathFile})
