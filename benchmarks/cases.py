"""All cases, in the order in which they run."""

from __future__ import annotations

from . import (
    case_actors,
    case_collections,
    case_coordination,
    case_data,
    case_memory,
    case_programs,
    case_ssh,
    case_tasks,
    case_tls,
    connections,
    core_alone,
)
from .model import Case

CASES: dict[str, Case] = {
    case.name: case
    for module in (
        case_tasks,
        case_actors,
        case_coordination,
        case_collections,
        case_data,
        case_tls,
        case_memory,
        case_programs,
        case_ssh,
        connections,
        core_alone,
    )
    for case in module.CASES
}
