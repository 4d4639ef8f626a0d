"""Quality control: agreement of annotators, verdicts by policy, and their routes in stock Label Studio."""
