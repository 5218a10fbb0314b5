"""The words of the built-in corpus: plain lists, most frequent first, read by `grammar_lexicon`.

Nouns: `singular[/plural][:f|:m]`; the plural is given where it is irregular, the gender where the word fixes it.
Verbs: `base[/past[/participle]]`, given where irregular; `look_at` takes a preposition, `pick~up` a particle, which
stands behind a pronoun ("pick it up").
The place of a word in its list is its frequency rank, so common words and irregular forms stand early.
"""

from __future__ import annotations

GIRLS = """
Anna Emma Lucy Mary Rosie Sarah Lily Julia Molly Alice Ella Kate Nora Sophie Grace Clara Hannah Daisy Olivia Ruby
Emily Susan Laura Jenny Amy Helen Zoe Mia Eva Ruth Betty Jane Holly Maria Nina Polly Tina Lisa Wendy Heather Rachel
Martha Linda Nancy Penny Sally Carol Diana Fiona Gina Ida Jill Karen Maggie Naomi Paula Rita Stella Tessa Ursula Vera
Willa Yvonne Abigail Beth Cora Doris Edith Flora Greta Hilda Irene Judith Lottie Mabel Nell Opal Peggy Rosa Sylvia
Thelma Violet Winnie Agnes Bridget
"""


BOYS = """
Tom Ben Jack Adam Peter Max Sam Leo Daniel Henry Oscar George David Noah Simon Harry Joe Paul Mark Tim Luke Eric
Oliver James Nick Robert Frank William Jacob Alfie Felix Dylan Bobby Kevin Martin Arthur Billy Charlie Edward Fred
Greg Howard Ivan Jerry Keith Larry Mike Neil Owen Patrick Ralph Steven Toby Victor Walter Zack Albert Bruno Carl
Dennis Ernest Floyd Gilbert Hugo Igor Jasper Kurt Lewis Milo Norman Otto Percy Quentin Rufus Stanley Theo Vincent
Wesley Conrad Duncan Elliot Finn
"""


PEOPLE = """
boy:m girl:f baby child/children mother:f father:m man/men:m woman/women:f friend sister:f brother:m teacher
grandmother:f doctor grandfather:m king:m queen:f farmer princess:f lady:f prince:m nurse aunt:f uncle:m neighbor
cousin policeman/policemen:m driver fireman/firemen:m witch:f daughter:f son:m clown giant baker
policewoman/policewomen:f wizard:m cook pirate student twin dancer singer sailor grandma:f grandpa:m painter
wife/wives:f husband:m captain person/people dentist pilot fairy mailman/mailmen:m niece:f nephew:m toddler hunter
cowboy:m gardener builder actress:f actor thief/thieves knight soldier astronaut mermaid:f waiter:m waitress:f
stranger guest visitor gentleman/gentlemen:m shepherd fisherman/fishermen:m snowman/snowmen:m swimmer runner magician
plumber tailor butcher hero/heroes heroine:f duchess:f duke:m librarian carpenter servant bride:f groom:m barber
scientist lifeguard musician drummer goddess:f juggler acrobat inventor explorer elf/elves troll goblin ogre
stepmother:f stepfather:m godmother:f monk:m nun:f babysitter cyclist jockey sheriff ranger vet
"""


ANIMALS = """
dog cat bird fish/fish bear mouse/mice rabbit duck horse cow pig puppy kitten sheep/sheep frog lion monkey elephant
chicken tiger goose/geese bee hen turtle spider fox wolf/wolves butterfly snake squirrel goat lamb owl ant whale
donkey zebra giraffe bug penguin deer/deer dragon pony crab caterpillar worm snail duckling calf/calves hippo kangaroo
parrot crocodile rat dolphin ladybug hamster dinosaur camel raccoon beaver hedgehog seal shark chick rooster panda
swan moose/moose turkey fly mole robin bull unicorn otter skunk badger octopus ox/oxen lizard peacock leopard cub
eagle crow beetle ostrich/ostriches foal piglet alligator gorilla koala cheetah flamingo walrus jellyfish/jellyfish
starfish/starfish grasshopper cricket dragonfly moth porcupine chipmunk gerbil lobster pelican seagull pigeon sparrow
buffalo/buffalo reindeer/reindeer rhino hyena jaguar llama mule lemur toad tadpole wasp vulture hawk woodpecker weasel
mosquito gecko iguana guppy
"""


FOODS = """
apple cookie banana egg carrot sandwich cake cracker potato/potatoes strawberry orange grape pancake pea
tomato/tomatoes pear bean cherry peach muffin noodle pizza sausage burger lollipop pie nut hotdog lemon bun plum donut
raisin mushroom onion melon cupcake pretzel berry waffle candy radish cucumber pumpkin pickle biscuit popsicle
blueberry olive walnut peanut meatball dumpling turnip pineapple mango/mangoes coconut apricot fig raspberry doughnut
pudding omelet taco brownie croissant bagel chestnut almond date kiwi avocado cabbage leek beet tart chip marshmallow
loaf/loaves
"""


DRINKS = "milk water juice tea soup coffee lemonade cocoa cider broth"


SUBSTANCES = """
bread rice cheese butter honey sand jam meat paint paper snow mud sugar salt cereal chocolate soap glue spaghetti
popcorn corn yogurt ketchup toast syrup flour string clay tape grass hay wool chalk jelly bacon mustard pepper oatmeal
lettuce garlic spinach wood dirt dust dough yarn foam glitter gravel ribbon cotton ink moss straw wax
"""


TOYS = """
ball doll book block car train truck balloon puzzle drum bike kite teddy crayon game picture toy puppet boat robot
swing whistle blanket marble bubble top trumpet slide rocket piano guitar card bell flute yo-yo tricycle scooter wagon
ring violin sticker mask magnet rattle sled drumstick hoop dollhouse skateboard racket frisbee trampoline jigsaw dart
domino tambourine harmonica xylophone banjo accordion paintbrush storybook stamp flashlight slingshot
"""


THINGS = """
cup spoon plate bottle key pencil stick towel pillow brush rock leaf/leaves stone fork pen knife/knives broom phone
rope flower letter shell bowl umbrella lamp clock comb hammer feather candle shovel penny napkin camera toothbrush
ladder mirror seed present coin ticket button needle nail newspaper watch/watches pan glass/glasses mop sponge rake
map kettle magazine pebble acorn ruler envelope eraser lantern saw hose drill sword crown necklace wallet radio vase
bandage notebook flag anchor axe hook wrench calendar whisk ladle tray mug candlestick battery hairbrush thermometer
microscope telescope compass pinecone jewel diamond trophy medal shield wand cane crutch
"""


CLOTHES = """
shoe hat sock coat shirt boot dress mitten jacket sweater scarf/scarves glove cap slipper skirt belt apron sandal vest
raincoat costume tie bib robe sneaker cape uniform helmet blouse hood bonnet wig bracelet earring badge bathrobe
swimsuit tunic kimono poncho bowtie
"""


CONTAINERS = """
box basket bag drawer bucket pocket crib cage closet jar wagon suitcase barrel nest cupboard trunk sink bathtub chest
purse crate pot fridge oven locker backpack sack bin tub hamper hole
"""


SURFACES = """
table bed chair floor shelf/shelves couch box bench desk rug sofa blanket roof counter step stool rock wall carpet
windowsill bookshelf/bookshelves armchair pillow hill mat dresser stage log porch cushion hammock ledge mattress
platform
"""


LANDMARKS = """
door house tree window car fence bed table bush gate pond box barn couch chair bridge tent wall tower well hedge
curtain fireplace garage truck river stove bathtub swing bus road boat fountain statue ladder haystack mailbox stump
pillar lamppost chimney greenhouse windmill scarecrow signpost lighthouse campfire
"""


PLACES = """
park house school garden kitchen store beach farm zoo yard forest playground barn bathroom bedroom lake river wood
library castle pool garage city market field cave mountain town bakery hospital museum island circus restaurant
village bridge office station church tent basement attic airport palace theater stable harbor meadow desert jungle
igloo hotel gym cabin pharmacy fair valley swamp aquarium cottage bank laundromat cafeteria gallery campground dungeon
fortress
"""


PLACES_WITH_AT = """
beach zoo playground lake river store market pool station airport circus church school harbor fair farm restaurant
theater pharmacy laundromat campground
"""


PLACES_WITH_ON = "island mountain bridge"


VEHICLES = """
car bus truck train boat bike airplane tractor van taxi ship helicopter sled rocket scooter motorcycle wagon ambulance
bulldozer tricycle crane canoe trolley subway submarine jeep sailboat ferry steamroller spaceship carriage minibus
raft rowboat yacht bicycle sleigh
"""


PLANTS = """
flower tree leaf/leaves rose bush plant daisy seed tulip vine sunflower weed pine dandelion cactus/cacti
branch/branches petal blossom fern lily poppy daffodil
"""


BODY_PARTS = """
hand foot/feet nose eye tooth/teeth ear finger toe knee head leg mouth arm belly tongue elbow cheek chin thumb
shoulder neck chest back ankle wrist lip forehead heel eyebrow
"""


SIZES = "big little small tiny huge giant enormous large gigantic massive"


COLORS = "red blue green yellow white black brown pink orange purple gray silver golden turquoise"


QUALITIES = """
new old nice pretty clean dirty soft good beautiful broken funny wet special shiny warm cold heavy lovely
round wooden empty strange magic dusty sticky hard striped square cheap wonderful ugly plain fancy fuzzy smooth rough
bright sharp fluffy muddy rusty sparkly bumpy slippery spotted creaky fragile ragged
"""


CHARACTERS = """
good nice little old young funny silly kind brave tall friendly fat naughty clever gentle quiet shy lazy strong fluffy
short grumpy playful wild tiny cheerful fast curious noisy polite clumsy greedy proud fierce stubborn jolly handsome
graceful timid bossy wise bold loyal mischievous
"""


FEELINGS = """
happy sad hungry tired sleepy sick angry thirsty scared ready cold lonely excited busy hurt lost safe surprised bored
proud afraid worried late warm awake quiet wet dirty asleep upset cross dizzy nervous calm glad jealous lucky confused
cozy frightened thankful puzzled exhausted shocked ashamed grateful
"""


TASTES = """
good yummy hot sweet cold delicious fresh ripe sour salty spicy tasty rotten bitter crunchy juicy chewy burnt stale
"""


COMPARABLE = "big small tall old fast strong nice short heavy loud quick young quiet soft brave slow kind smart"


COMPARABLE_THINGS = "big small nice old heavy new light strange"


MANNERS = """
again quickly slowly quietly loudly happily carefully gently suddenly softly sadly nicely politely angrily
bravely proudly noisily eagerly gracefully clumsily silently merrily lazily cheerfully nervously
"""


ACTIVITIES = """
sleep/slept play run/ran/run sing/sang/sung jump cry dance laugh swim/swam/swum sit/sat fly/flew/flown smile wait work
stand/stood rest climb shout walk hide/hid/hidden eat/ate/eaten listen hop whisper sneeze yawn giggle crawl march skip
cough wave dream nod snore wiggle sigh spin/spun hum kneel/knelt blink grin frown clap wander stumble shiver hiccup
whistle tremble faint gasp scream stretch relax cheer squeal blush sniffle mumble complain twirl tiptoe limp chuckle
"""


ANIMAL_ACTIVITIES = """
sleep/slept run/ran/run jump eat/ate/eaten play sit/sat hide/hid/hidden sing/sang/sung swim/swam/swum fly/flew/flown
wait walk climb rest stand/stood hop dance crawl yawn sneeze wiggle spin/spun snore growl dream shiver scratch tremble
stretch howl sniff roar stumble wander squeak grunt relax
"""


MOTIONS = """
go/went/gone run/ran/run walk come/came/come fly/flew/flown drive/drove/driven hurry get/got/gotten travel
swim/swam/swum climb march ride/rode/ridden crawl race hop sail wander return stroll gallop rush skip sneak
creep/crept tiptoe
"""


INGEST = """
eat/ate/eaten find/found cook buy/bought taste share bite/bit/bitten bake finish smell drop pick swallow
steal/stole/stolen chew nibble peel slice chop lick grab gobble wash serve order
"""


FEEDING = """
eat/ate/eaten find/found like bite/bit/bitten smell steal/stole/stolen taste share chew swallow lick nibble sniff
gobble munch crunch
"""


DRINKING = "drink/drank/drunk spill pour finish taste sip mix stir boil carry slurp gulp"


HANDLING = """
find/found take/took/taken hold/held see/saw/seen drop lose/lost carry get/got/gotten bring/brought throw/threw/thrown
buy/bought break/broke/broken pick~up hide/hid/hidden choose/chose/chosen clean draw/drew/drawn touch look_at kick
push pull look_for fix steal/stole/stolen wash forget/forgot/forgotten share keep/kept paint play_with
shake/shook/shaken catch/caught count sell/sold move grab borrow collect wrap polish lift point_at squeeze roll wipe
admire trade inspect repair decorate return examine deliver mend measure sketch pack label unwrap photograph
"""


SOCIAL = """
see/saw/seen help love like follow chase find/found hug call watch hear/heard kiss know/knew/known catch/caught
meet/met look_at wait_for tickle visit feed/fed talk_to push wake/woke/woken listen_to play_with scare touch
bite/bit/bitten look_for kick pull thank tease laugh_at miss teach/taught carry wash draw/drew/drawn hold/held trust
pat shout_at forget/forgot/forgotten surprise greet rescue admire bother invite obey pinch splash smile_at stare_at
annoy protect warn cuddle lick sniff welcome comfort ignore poke recognize entertain impress praise interrupt
"""


ANIMAL_SOCIAL = """
see/saw/seen chase follow like find/found help watch hear/heard bite/bit/bitten scare catch/caught look_at wait_for
love meet/met play_with run_after/ran/run lick wake/woke/woken listen_to look_for kick kiss tickle push annoy stare_at
bother surprise sniff splash protect growl_at ignore
"""


ANIMAL_REFLEXIVES = """
wash hurt/hurt see/saw/seen hide/hid/hidden clean scratch dry like bite/bit/bitten warm look_at feed/fed
shake/shook/shaken stretch lick
"""


REFLEXIVES = """
see/saw/seen hurt/hurt wash help dress like draw/drew/drawn hide/hid/hidden love clean teach/taught look_at scratch
dry enjoy talk_to behave warm tickle laugh_at cover admire blame bite/bit/bitten trust comfort introduce surprise save
scare
"""


GIVING = """
give/gave/given show bring/brought throw/threw/thrown send/sent buy/bought sell/sold lend/lent hand pass toss
"""


PLACING = """
put/put leave/left hide/hid/hidden drop throw/threw/thrown find/found keep/kept place pack stuff
forget/forgot/forgotten
"""


GROOMING = """
wash hurt/hurt touch clean dry shake/shook/shaken move scratch break/broke/broken rub warm cover point_at stretch tap
bandage
"""


WEARING = (
    "wear/wore/worn wash find/found lose/lost tear/tore/torn pack clean fold button iron hang~up/hung sew zip mend knit"
)


POSSESSING = "want have/had like need love prefer own"


DRIVING = """
drive/drove/driven ride/rode/ridden stop wash fix paint push hear/heard see/saw/seen watch steer park clean race pull
repair chase rent load
"""


MAKING = (
    "make/made draw/drew/drawn build/built paint buy/bought break/broke/broken finish design sketch invent assemble"
)


CHANGING = """
fall/fell/fallen break/broke/broken move roll disappear burn float sink/sank/sunk bounce slip vanish tumble
"""


VEHICLE_MOVES = """
stop move go/went/gone turn crash beep slow~down leave/left break~down/broke/broken shake/shook/shaken rattle skid
honk zoom swerve
"""


GROWING = "grow/grew/grown fall/fell/fallen move die bloom shake/shook/shaken wilt sway rustle droop sprout"


SAYING = """
say/said think/thought know/knew/known see/saw/seen hear/heard hope forget/forgot/forgotten dream remember guess
believe feel/felt notice learn worry pretend discover whisper suppose imagine realize
"""


ASKING = "ask tell/told help want teach/taught need invite beg remind order persuade expect"


INTENDING = """
want like try love need start hope forget/forgot/forgotten begin/began/begun learn promise decide remember plan refuse
pretend agree choose/chose/chosen offer hesitate
"""


STATIVE = """
want have like need love prefer own see hear know believe trust forget remember feel notice realize suppose recognize
hate
"""


ALWAYS_TRANSITIVE = "chase find/found catch/caught scare take/took hold/held carry thank like lick love"


NEVER_TRANSITIVE = "sleep/slept smile laugh wait cry sneeze yawn giggle snore cough"


LACKING = "have/had want see/saw/seen find/found buy/bought need"


LIKING = "want like need love"
