"""The answer of a search in files: the preset file and the page."""

from support.files import write_json
from tune.job import SearchJob
from tune.page import write_page
from tune.result import SearchResult, read_result
from tune.summary import preset_file

BEST, PAGE = "best.json", "report.html"


def write_result(job: SearchJob) -> SearchResult:
    """Work out the answer from the record, and write the preset file and the page."""
    result = read_result(job)
    write_json(job.dir / BEST, preset_file(result))
    write_page(job, result, job.dir / PAGE)
    return result
