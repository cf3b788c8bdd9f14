"""The door to the page: `python app.py`."""

from momentdetr.web import serve

if __name__ == "__main__":
    serve()
