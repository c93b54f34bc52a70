"""The policy as an asyncio service that knows no Ray: exchange, decide, publish, answer."""
