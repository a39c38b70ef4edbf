"""Continues many texts at once with asyncio: many.py ADDRESS TEXT [TEXT…]"""

import asyncio
import sys

import blockserve


async def main() -> None:
    if len(sys.argv) < 3:
        sys.exit("usage: many.py ADDRESS TEXT [TEXT...]")
    address, *texts = sys.argv[1:]
    async with blockserve.AsyncClient(address) as client:
        answers = await asyncio.gather(*(client.generate(text, max_tokens=32) for text in texts))
    for text, answer in zip(texts, answers):
        print(text + answer.choices[0].text)


if __name__ == "__main__":
    asyncio.run(main())
