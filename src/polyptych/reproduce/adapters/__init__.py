"""Do SAM and VPG-C help bases of today's kind, and do they help together?"""
