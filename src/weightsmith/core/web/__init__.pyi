from ._answers import (
    REASONS as REASONS,
    Problem as Problem,
    answer_problems as answer_problems,
    problems as problems,
    serve_page as serve_page,
    uploaded as uploaded,
)
from ._guard import Guard as Guard, Limits as Limits, problem as problem
from ._server import HOST as HOST, LocalServer as LocalServer, listen as listen, run as run, serving as serving
