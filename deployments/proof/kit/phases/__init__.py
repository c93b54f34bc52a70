"""What is proved, one file each: tasks, what a task does with its engine, and the verdict on all of them."""
