"""Continues a text on running servers: generate.py TEXT ADDRESS [ADDRESS…]"""

import sys

import blockserve


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit("usage: generate.py TEXT ADDRESS [ADDRESS...]")
    text, *addresses = sys.argv[1:]
    # With several addresses the text goes on when one of the gateways is lost.
    with blockserve.Client(addresses) as client:
        for event in client.stream(text, max_tokens=64, temperature=0.8):
            if isinstance(event, (blockserve.Output, blockserve.Finished)):
                print(event.text, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
