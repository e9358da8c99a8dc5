"""The columns of the oracle, each compared with the table; `make oracle` also compares them with each other."""

import pytest
from tests.oracle import report
from tests.oracle.column import load_table
from tests.oracle.main import run_column


def check(name: str) -> None:
    """Run a column; every case must agree with the table, or differ as the table says."""
    column = run_column(name, ["*"])
    entries = report.numbered_entries(report.DIFFERENCES.read_text())
    findings = report.judge(load_table(), [column], entries)
    assert not findings, "\n".join(f"{f.case.name}: {line}" for f in findings for line in f.lines)
    assert column.verdicts["passed"] > 250


@pytest.mark.timeout(240)
@pytest.mark.parametrize("column", ["api", "preload"])
def test_ours_behaves_as_the_table_says(column):
    """`vsock.socket`, and plain sockets under ``vsock run``, over a switch of their own."""
    check(column)


@pytest.mark.vm
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kernel", ["6.12", "6.1"])
def test_table_says_what_the_kernel_does(kernel):
    """A guest whose kernel plays the host."""
    check(f"kernel-{kernel}")
