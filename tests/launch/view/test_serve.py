"""The page of a launch over HTTP, as it is when it is asked for."""

import re
import urllib.error
import urllib.request

import pytest
from folders import planned_launch

from latentbridge.launch.view.serve import serving


def read(address):
    with urllib.request.urlopen(address, timeout=30) as answer:
        return answer.read().decode()


def test_the_page_is_of_this_moment_and_only_who_knows_the_address_sees_files(write_spec, project):
    write_spec("name: s\njob: count\ncluster: local\nruns: {a: {}, b: {steps: 7}}")
    launch = planned_launch(project)

    with serving(launch.path, 0) as address:
        assert address.startswith("http://127.0.0.1:")
        first = read(address)
        name = next(iter(launch.plan["runs"]))["name"]
        (launch.path / name).mkdir(exist_ok=True)
        (launch.path / name / "DONE").write_text("{}")
        assert "0 of 2 runs done" in first and 'http-equiv="refresh"' in first
        assert "1 of 2 runs done" in read(address)
        assert '"name"' in read(address + "plan.json")
        for wrong in (address + "no_such_file", address[:-6], re.sub(r"(:\d+/).*", r"\1plan.json", address)):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                read(wrong)

    with pytest.raises(urllib.error.URLError):
        read(address)
