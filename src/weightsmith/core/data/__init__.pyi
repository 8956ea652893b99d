from ._text import read_text as read_text, token_ids as token_ids, token_windows as token_windows
