from ._batches import (
    IGNORED as IGNORED,
    Batch as Batch,
    Batches as Batches,
    Sample as Sample,
    Samples as Samples,
    as_batches as as_batches,
    batched as batched,
    call as call,
    check_samples as check_samples,
    collate as collate,
    in_model_dtype as in_model_dtype,
    is_regression as is_regression,
    keywords as keywords,
    map_tensors as map_tensors,
    pad_token_id as pad_token_id,
    read as read,
    split_labels as split_labels,
    take as take,
    to_device as to_device,
    to_model as to_model,
    token_positions as token_positions,
    without_labels as without_labels,
)
from ._chat import render_chat as render_chat
from ._digest import sample_digest as sample_digest, samples_digest as samples_digest
from ._files import Reader as Reader, context_length as context_length
from ._text import (
    read_text as read_text,
    token_ids as token_ids,
    token_windows as token_windows,
)
