"""What a Serve config or a RayService means, and what is wrong with it: report.py asks the others and places what they find."""
