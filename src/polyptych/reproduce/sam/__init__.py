"""SAM (arXiv 2408.12867): does it help when the images of a group guide each other?"""
