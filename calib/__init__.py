"""Makes plans of lower precision from fp32 plans: records rollouts, computes scales, inserts Q/DQ, and reports."""
