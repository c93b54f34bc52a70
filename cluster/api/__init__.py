"""The operator's API: a row for each operation, the HTTP application and its page, who may call it, and the commands' client."""
