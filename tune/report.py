"""The answer of a search in files: the preset file and the page."""

from pipeline.run import write_json
from tune.job import Plan
from tune.page import write_page
from tune.result import Answer, answer
from tune.summary import preset_file

BEST, PAGE = "best.json", "report.html"


def conclude(plan: Plan) -> Answer:
    """Work out the answer from the record, and write the preset file and the page."""
    found = answer(plan)
    write_json(plan.dir / BEST, preset_file(found))
    write_page(plan, found, plan.dir / PAGE)
    return found
