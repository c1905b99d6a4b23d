"""The installation: the lock holds every package, ranges leave out what is known to break, the wheel is whole."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTALLER = "pip"
"""What installs is not installed by the lock: it comes with Python, at the version that is there."""


def locked() -> list[Requirement]:
    """The lines of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def locked_here() -> dict[str, Version]:
    """By canonical name, the version that the lock gives this machine."""
    return {
        canonicalize_name(one.name): Version(next(iter(one.specifier)).version)
        for one in locked()
        if one.marker is None or one.marker.evaluate()
    }


def requirements(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for, with the packages of these extras."""
    lines = [*PROJECT["dependencies"]]
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


@pytest.mark.locked
def test_every_installed_distribution_is_locked_at_its_version():
    lock = locked_here()
    unlocked = []
    for distribution in metadata.distributions():
        name = canonicalize_name(distribution.name)
        if name in (canonicalize_name(PROJECT["name"]), INSTALLER):
            continue
        # the same torch is published for CPUs alone with a local label: 2.13.0+cpu
        if lock.get(name) != Version(Version(distribution.version).public):
            unlocked.append(f"{name} {distribution.version}, in the lock: {lock.get(name)}")
    assert not unlocked


def test_what_is_installed_fits_together():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_lock_pins_each_package_exactly():
    for one in locked():
        assert [specifier.operator for specifier in one.specifier] == ["=="], str(one)


def test_the_lock_satisfies_the_project():
    lock = locked_here()
    for one in requirements("dev", "ray"):
        assert one.specifier.contains(str(lock[canonicalize_name(one.name)])), str(one)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_the_lock_is_resolved_for_every_system(python: str, system: str):
    here = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": system}
    found = [canonicalize_name(o.name) for o in locked() if o.marker is None or o.marker.evaluate(here)]
    assert len(found) == len(set(found)), "two versions of one package"
    assert {canonicalize_name(one.name) for one in requirements("dev", "ray")} <= set(found)
    assert ("triton" in found) == (system == "linux")  # what torch needs with CUDA


def test_transformers_that_ask_for_an_unpublished_peft_are_left_out():
    ranges = {one.name: one.specifier for one in requirements("dev")}
    assert "5.24.0" not in ranges["transformers"] and "5.23.0" in ranges["transformers"]


def test_the_lock_names_no_host():
    assert not re.search(r"https?://|--index|--find-links", (ROOT / "constraints.txt").read_text())


@pytest.mark.slow
def test_the_wheel_holds_all_that_the_checkout_has(tmp_path: Path):
    make = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        tmp_path,
    ]
    subprocess.run([*make, ROOT], check=True)
    (wheel,) = tmp_path.glob("medley_retrieval-*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("medley/")}
    tracked = subprocess.run(
        ["git", "ls-files", "src/medley"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\n")  # fmt: skip
    assert held == {name.removeprefix("src/") for name in tracked if name}
    # from the wheel alone, in a Python that does not know the checkout
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, tmp_path / "site"], check=True)
    said = subprocess.run(
        [sys.executable, "-c", "import medley; from medley.collections import BUNDLED; "
         "print(medley.__file__, (BUNDLED / 'tiny' / 'config.json').is_file())"],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert said.split() == [str(tmp_path / "site" / "medley" / "__init__.py"), "True"]


def test_every_make_command_in_the_readme_is_there():
    named = set(re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"demo", "test", "wheel"} <= named
    subprocess.run(["make", "--dry-run", *sorted(named)], cwd=ROOT, check=True, capture_output=True)
