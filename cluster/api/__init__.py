"""The operator's API: a row for each operation, the HTTP application with its page, who may call it, and the client of the commands."""
