"""What every stage and method wrote over the demo's scenes: headers, tensors and words.

`lines.txt` is a workspace from scenes to exports, one command a line; `expected.json` is what a
reviewed version of the code made of it. A change of the code that changes neither a result nor a
header leaves the comparison as it is. A change that is meant is recorded again, and reviewed as a
diff of `expected.json`:

    PYTHONPATH=tests python -m golden
"""
