"""What runs in each worker, and the orders that come to it with a step (draft_work.py). base.py is what all workers share."""
