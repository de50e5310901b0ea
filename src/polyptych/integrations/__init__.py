"""Other harnesses that can run our models; none of them is a dependency.

``lmms_eval`` finds us by an entry point, VLMEvalKit by a launcher. Every harness that speaks
OpenAI's API can ask a server instead.
"""
