"""Holds English prompts that ask for long answers, so that few answers end before they have all their tokens."""

PROMPTS = (
    "Tell me a long story about a lighthouse keeper who finds a message in a bottle. Describe the weather, the sea, "
    "the keeper's habits and what he does next, and do not hurry towards the end.",
    "I am going to spend two weeks hiking in the mountains with my brother, who has never slept in a tent before. "
    "Explain in detail how we should prepare, what we should carry and how we should plan each day.",
    "Explain to a curious child how a steam engine works. Begin with what happens to water when it is heated, go on "
    "to the piston and the wheel, and end with the railways that were built because of it.",
    "Write a letter from a gardener to a friend who has just moved to a colder country. Give advice for every "
    "season, and say which vegetables forgive a beginner's mistakes.",
    "Describe the history of the printing press in Europe, from the first movable type to the newspapers of the "
    "nineteenth century, with particular attention to how books became cheaper.",
    "Our small library wants to attract more young readers. Suggest ten different activities that cost little "
    "money, and for each of them say what is needed, who could lead it and why it would work.",
    "Compare life in a big city with life in a village by the sea. Consider work, noise, friendship, food and the "
    "raising of children, and give an example from daily life for each of them.",
    "Write a detailed recipe for a vegetable soup that feeds six people on a winter evening. Name the ingredients "
    "with their amounts, explain every step, and say how the soup can be varied.",
    "Explain how vaccines protect people from disease. Describe what the immune system does the first time it meets "
    "a germ, what it remembers, and why it matters that most people take part.",
    "Write a chapter of a detective story that is set in a hotel during a snowstorm. Introduce four guests with "
    "their secrets, and let the detective find the first clue in the kitchen.",
    "I have to give a speech at my sister's wedding. She is a nurse, she loves old films and she taught me to ride "
    "a bicycle. Write the whole speech for me, warm and a little funny.",
    "Describe how a large river changes on its way from the mountains to the sea. Talk about its speed, its animals "
    "and plants, the towns on its banks and the people who work on it.",
    "Explain what a computer does between the moment the power button is pressed and the moment the desktop "
    "appears, in words that somebody without any technical training can follow.",
    "Plan a month of evening lessons for adults who want to learn to draw. For every week name the subject, the "
    "exercises and the materials, and say what the students should be able to do afterwards.",
    "Tell the story of an old clock that has stood in the same family's house for two hundred years, from the "
    "clock's own point of view, with at least three different generations.",
    "Explain why the seasons change, why the days are longer in summer, and why it is winter in Australia when it "
    "is summer in England. Use the example of a lamp and an orange.",
)


def prompt(number: int) -> str:
    """Returns a run's prompt of that number. The text begins with the number, so that no prefix cache helps."""
    return f"Task {number}. {PROMPTS[number % len(PROMPTS)]}"
